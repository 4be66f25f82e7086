"""A finished network that teaches: read from a file, never trained, outside of the engine.

Named by a recipe as RUN or RUN:SIZE (or one teacher's folder), or as an extracted model's folder.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from poa_ds.checkpoint import deployed
from poa_ds.model import form
from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.model.projector import unit
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object

KEY = "distill.teacher"
EXTRACTED = ("model.safetensors", "state_dict.safetensors")
ABOUT = "config.json"


@dataclass(frozen=True)
class Frozen:
    """Where the teacher is and what it expects; its weights are not read yet.

    weights: the file that makes it what it is. size: of the elastic network in a run, "" of an
    extracted model. width: of its embedding. mean, std: of the pixels it was trained on.
    """

    weights: Path
    size: str
    width: int
    mean: Sequence[float]
    std: Sequence[float]

    def digest(self) -> Tensor:
        """The sha256 of weights and size as 32 numbers, for a checkpoint."""
        with open(self.weights, "rb") as file:
            found = hashlib.file_digest(file, "sha256")
        found.update(self.size.encode())
        return torch.tensor(list(found.digest()), dtype=torch.float32)

    def network(self) -> Callable[[Tensor], Tensor]:
        """Images -> class features (B, C), in eval mode, float32, on the CPU."""
        if self.size:
            model, _, _ = deployed.load_teacher(self.weights.parent)
            return _OneSize(model, model.space.parse(self.size)).eval()
        return _extracted_network(self.weights)


class _OneSize(nn.Module):
    def __init__(self, model: nn.Module, subnet: Subnet) -> None:
        super().__init__()
        self.model, self.subnet = model, subnet

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, self.subnet)[:, 0]


class Embedder:
    """The teacher at work. mean, std: as the images that it gets are normalised."""

    def __init__(
        self,
        teacher: Frozen,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.digest = teacher.digest().to(device)
        self._dtype = dtype
        self._network = teacher.network().requires_grad_(False).to(device, dtype)
        # the same pixels in the teacher's own normalisation
        (m, s), (own_m, own_s) = (
            torch.tensor(pair, device=device).view(2, 3, 1, 1)
            for pair in ((mean, std), (teacher.mean, teacher.std))
        )
        self._factor, self._shift = s / own_s, (m - own_m) / own_s

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Unit rows (B, D) in float32."""
        return unit(self._network((images * self._factor + self._shift).to(self._dtype)))


def find(text: str, side: int) -> Frozen:
    """The teacher that a recipe names, for images of `side` pixels. UserError: there is none."""
    place, size = Path(text), ""
    if not place.exists() and ":" in text:
        before, _, size = text.rpartition(":")
        place = Path(before)
    if not place.is_dir():
        raise UserError(f"{KEY} {text}: there is no folder {place}")
    found = next((place / name for name in EXTRACTED if (place / name).is_file()), None)
    if found and size:
        raise UserError(f"{KEY} {text}: {place} is one extracted size, leave out :{size}")
    return _extracted(found) if found else _of_run(place, size, side)


def _of_run(place: Path, size: str, side: int) -> Frozen:
    folder = deployed.find_teacher(place)
    recipe, _ = deployed.read_recipe(folder / deployed.RECIPE)
    space, shape = derived.space(recipe), derived.shape(recipe)
    subnet = space.parse(size) if size else space.intact
    multiple, name = shape.multiple()
    if side % multiple:
        raise UserError(
            f"crops.global_size {side} is not a multiple of the {name} of {KEY} {place}"
        )
    pixels = recipe.augmentation
    return Frozen(
        folder / deployed.WEIGHTS, str(subnet), shape.features(subnet), pixels.mean, pixels.std
    )


def _extracted(weights: Path) -> Frozen:
    about = _about(weights.parent)
    pixels = about["pretrained_cfg"]
    return Frozen(weights, "", about["num_features"], pixels["mean"], pixels["std"])


def _about(folder: Path) -> dict:
    path = folder / ABOUT
    kinds = {"architecture": str, "num_features": int, "model_args": dict, "pretrained_cfg": dict}
    try:
        return parse_object(path.read_bytes(), **kinds)
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY}: {path} is missing or damaged: {error}") from error


def _extracted_network(weights: Path) -> nn.Module:
    """The plain network of an extracted model, built by our own module: no code of the folder."""
    about = _about(weights.parent)
    name = about["architecture"]
    kind = next((kind for kind in ARCHITECTURES if name.startswith(kind)), None)
    try:
        network = form.of(kind).module.Network(**about["model_args"])
        network.load_state_dict(load_file(weights), strict=True)
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"{KEY}: {weights} is no network of ours ({error}):"
            " poa-ds extract --format state-dict writes one"
        ) from error
    return network.eval()

"""A finished network that teaches: read from a file, never trained, outside of the engine.

Named by a recipe as RUN or RUN:SIZE (or one teacher's folder), as an extracted model's folder, or
as timm:NAME=FILE.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from poa_ds.checkpoint import deployed
from poa_ds.methods import frozen_head, frozen_patches, frozen_timm
from poa_ds.model import form
from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.model.projector import unit
from poa_ds.model.space import Subnet
from poa_ds.model.vit.names import GATED
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object
from poa_ds.system.printable import figure
from poa_ds.system.run_folder import named

KEY = "distill.teacher"
SIDES = ("crops.global_size", "crops.local_size")  # of what it sees
EXTRACTED = ("model.safetensors", "state_dict.safetensors")
ABOUT, HEAD = "config.json", "head0"


@dataclass(frozen=True)
class Cost:
    """parameters: numbers that lie in memory. flops: of one image, two per multiply-add."""

    parameters: int
    flops: float


@dataclass(frozen=True)
class Frozen:
    """Where the teacher is and what it expects; its weights are not read yet.

    weights: the file that makes it what it is. size: of the elastic network in a run, "" of others.
    width: of its embedding. mean, std: of the pixels it was trained on. timm: its name there, "" of
    one of ours. head: prototype head 0 of the run embeds.
    """

    weights: Path
    size: str
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    timm: str = ""
    head: bool = False

    def digest(self) -> Tensor:
        """The sha256 of weights, description and size as 32 numbers, for a checkpoint."""
        with open(self.weights, "rb") as file:
            found = hashlib.file_digest(file, "sha256")
        about = b"" if self.timm else (self.weights.parent / ABOUT).read_bytes()
        found.update(about + (self.timm or self.size).encode())
        found.update(HEAD.encode() if self.head else b"")
        return torch.tensor(list(found.digest()), dtype=torch.float32)

    def network(self) -> nn.Module:
        """Images -> class features (B, C), in eval mode, float32, on the CPU."""
        if self.size:
            model, recipe, _ = deployed.load_teacher(self.weights.parent)
            head = frozen_head.read(self.weights, recipe) if self.head else None
            return _OneSize(model, model.space.parse(self.size), head).eval()
        if self.timm:
            network = frozen_timm.built(self.timm, KEY)
            return frozen_timm.load(network, self.weights, KEY)
        return _extracted_network(self.weights)

    def described(self, side: int, dtype: torch.dtype) -> str:
        """What it is and takes, on images of `side` pixels and in this type, in words."""
        count = self.cost(side).parameters
        head = f" {HEAD}" if self.head else ""
        ours = f"{self.weights.parent} {self.size}".rstrip() + head
        name = f"{self.weights} in timm's {self.timm}" if self.timm else ours
        return (
            f"{name}, frozen: {count / 1e6:.3g} M parameters,"
            f" {figure(count * dtype.itemsize / 2**20)} MiB on each rank, outside of the engine"
        )

    def cost(self, side: int) -> Cost:
        """What it takes on images of `side` pixels; its weights are not read."""
        with torch.device("meta"):
            if self.size:
                recipe, _ = deployed.read_recipe(self.weights.parent / deployed.RECIPE)
                subnet, shape = derived.space(recipe).parse(self.size), derived.shape(recipe)
                head = frozen_head.built(recipe) if self.head else None
                model, flops = _OneSize(backbone(recipe), subnet, head), shape.flops(subnet, side)
                if head:
                    flops += frozen_head.flops(recipe, shape.features(subnet))
            else:
                model = self._bare()
                with FlopCounterMode(display=False) as counter:
                    model(torch.empty(1, len(self.mean), side, side))
                flops = float(counter.get_total_flops())
        return Cost(sum(p.numel() for p in model.parameters()), flops)

    def patches(self, side: int) -> int:
        """Places of an image of `side` pixels that it says something of; weights are not read."""
        if self.size:
            recipe, _ = deployed.read_recipe(self.weights.parent / deployed.RECIPE)
            return derived.shape(recipe).grid(side) ** 2
        with torch.device("meta"):
            images = torch.empty(1, len(self.mean), side, side)
            return frozen_patches.both(self._bare(), images)[1].shape[1]

    def _bare(self) -> nn.Module:
        """Of timm, or extracted; on the default device, without its weights."""
        return frozen_timm.built(self.timm, KEY) if self.timm else _plain(self.weights)


class _OneSize(nn.Module):
    """With the names that timm gives the two halves of a network."""

    num_prefix_tokens = 1

    def __init__(self, model: nn.Module, subnet: Subnet, head: nn.Module | None) -> None:
        super().__init__()
        self.model, self.subnet, self.head = model, subnet, head

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        return self.model(images, self.subnet)

    def forward_head(self, tokens: Tensor) -> Tensor:
        feature = tokens[:, 0]
        return self.head(feature)[0] if self.head else feature


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
        self.network = teacher.network().requires_grad_(False).to(device, dtype)
        # the same pixels in the teacher's own normalisation
        (m, s), (own_m, own_s) = (
            torch.tensor(pair, device=device).view(2, -1, 1, 1)
            for pair in ((mean, std), (teacher.mean, teacher.std))
        )
        self._factor, self._shift = s / own_s, (m - own_m) / own_s

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Unit rows (B, D) in float32."""
        return unit(self.network(self._own(images)))

    @torch.no_grad()
    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and features (B, N, C) of the patches."""
        rows, patches = frozen_patches.both(self.network, self._own(images))
        return unit(rows), patches

    def _own(self, images: Tensor) -> Tensor:
        return (images * self._factor + self._shift).to(self._dtype)


def of_recipe(recipe: Recipe) -> Frozen:
    """The teacher of a recipe of method seed. UserError: there is none, or it does not fit."""
    options, crops = recipe.distill, recipe.crops
    sides = (crops.global_size, crops.local_size) if options.local else (crops.global_size,)
    found = find(options.teacher, *sides, embedding=options.embedding)
    if len(found.mean) != recipe.data.channels:
        raise UserError(
            f"{KEY} {options.teacher} takes images of {len(found.mean)} channels, data.channels is"
            f" {recipe.data.channels}: `poa-ds import --channels` makes a teacher of as many"
        )
    if options.patches:
        theirs = found.patches(crops.global_size)
        ours = derived.shape(recipe).grid(crops.global_size) ** 2
        if theirs != ours:
            raise UserError(
                f"distill.patches {options.patches:g}: {KEY} {options.teacher} says something of"
                f" {theirs} places in crops of {crops.global_size} pixels, students of {ours}; take"
                " another backbone.patch_size or teacher, or leave distill.patches out"
            )
    return found


def find(text: str, *sides: int, embedding: str = "class") -> Frozen:
    """The teacher that a recipe names, for images of these pixels. UserError: there is none."""
    head = embedding == HEAD
    if text.startswith(frozen_timm.PREFIX):
        _without_head(text, head)
        return _of_timm(text, sides)
    try:
        place, size = named(text)
    except UserError as error:
        raise UserError(f"{KEY} {text}: {error}") from error
    found = next((place / name for name in EXTRACTED if (place / name).is_file()), None)
    if found and size:
        raise UserError(f"{KEY} {text}: {place} is one extracted size, leave out :{size}")
    if found:
        _without_head(text, head)
        return _extracted(found)
    return _of_run(place, size, sides, head=head)


def _without_head(text: str, wanted: bool) -> None:
    if wanted:
        raise UserError(
            f"distill.embedding {HEAD}: {KEY} {text} has no prototype heads, which runs alone have;"
            " leave distill.embedding out"
        )


def _of_run(place: Path, size: str, sides: Sequence[int], *, head: bool) -> Frozen:
    folder = deployed.find_teacher(place)
    recipe, _ = deployed.read_recipe(folder / deployed.RECIPE)
    space, shape = derived.space(recipe), derived.shape(recipe)
    subnet = space.parse(size) if size else space.intact
    derived.check_trained(recipe, [subnet])
    multiple, name = shape.multiple()
    for key, side in zip(SIDES, sides, strict=False):
        if side % multiple:
            raise UserError(f"{key} {side} is not a multiple of the {name} of {KEY} {place}")
    pixels = recipe.augmentation
    width, mean, std = shape.features(subnet), tuple(pixels.mean), tuple(pixels.std)
    weights = folder / deployed.WEIGHTS
    if head:
        _without_head(str(place), not frozen_head.has_one(weights))
        width = recipe.heads.bottleneck
    return Frozen(weights, str(subnet), width, mean, std, head=head)


def _of_timm(text: str, sides: Sequence[int]) -> Frozen:
    name, weights = frozen_timm.parsed(text, KEY)
    with torch.device("meta"):
        network = frozen_timm.built(name, KEY)
    width, *_ = (
        frozen_timm.channels(network, f"{what} {side}", side, f"{KEY} {text}")
        for what, side in zip(SIDES, sides, strict=False)
    )
    pixels = network.pretrained_cfg
    mean, std = tuple(pixels["mean"]), tuple(pixels["std"])
    return Frozen(weights, "", width, mean, std, timm=name)


def _extracted(weights: Path) -> Frozen:
    about = _about(weights.parent)
    pixels = about["pretrained_cfg"]
    mean, std = tuple(pixels["mean"]), tuple(pixels["std"])
    return Frozen(weights, "", about["num_features"], mean, std)


def _about(folder: Path) -> dict:
    path = folder / ABOUT
    kinds = {"architecture": str, "num_features": int, "model_args": dict, "pretrained_cfg": dict}
    try:
        return parse_object(path.read_bytes(), **kinds)
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY}: {path} is missing or damaged: {error}") from error


def _extracted_network(weights: Path) -> nn.Module:
    network = _plain(weights)
    try:
        network.load_state_dict(load_file(weights), strict=True)
    except (RuntimeError, OSError, SafetensorError) as error:
        raise _no_network(weights, error) from error
    return network.eval()


def _plain(weights: Path) -> nn.Module:
    """The plain network of an extracted model, built by our own module: no code of the folder."""
    about = _about(weights.parent)
    name = about["architecture"]
    kind = next((kind for kind in ARCHITECTURES if name.startswith(kind)), None)
    try:
        gated = {"gated": True} if name == GATED else {}  # timm's tell it by the name alone
        return form.of(kind).module.Network(**about["model_args"], **gated)
    except (KeyError, TypeError, RuntimeError) as error:
        raise _no_network(weights, error) from error


def _no_network(weights: Path, error: Exception) -> UserError:
    return UserError(
        f"{KEY}: {weights} is no network of ours ({error}):"
        " poa-ds extract --format state-dict writes one"
    )

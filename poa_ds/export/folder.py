"""An extracted size as a folder that others open, and the proof that it computes the same."""

import json
import runpy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

from poa_ds.checkpoint.deployed import licence_of
from poa_ds.data.image.values import Values
from poa_ds.data.loader import eval_batches
from poa_ds.data.places import open_folder
from poa_ds.export import hf_folder, onnx_file
from poa_ds.export.plain_state import build
from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.options import COLOURS
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.files import whole_folder
from poa_ds.system.json_text import parse
from poa_ds.system.regular import check_regular
from poa_ds.system.run_folder import LICENCE

Style = Literal["timm", "hf", "state-dict", "onnx"]
WEIGHTS: dict[Style, str] = {
    "timm": "model.safetensors",
    "hf": "model.safetensors",
    "state-dict": "state_dict.safetensors",
    "onnx": "model.onnx",
}
RECIPE, MODULE, CARD = "config.json", "model.py", "README.md"
MARK = "poa_ds"  # a key of RECIPE: the folder is one of ours
LIMIT = 1e-4  # of a check; rounding in float32 amounts to about 1e-5
HALF_LIMIT = 5e-2  # the same of weights in 16 bits, where it amounts to about 5e-3
CHECKED_IMAGES = 8


@dataclass(frozen=True)
class Export:
    """How sizes of one teacher are written.

    source: where the teacher came from, for the record. any_size: an ONNX file for images of any
    sides; the other formats take them anyway. made: how a size came about that was not trained.
    half: weights in 16 bits. told_source: what stands in config.json for `source`, which is a path.
    """

    model: ElasticBackbone
    recipe: Recipe
    step: int
    source: str
    style: Style = "timm"
    any_size: bool = False
    made: str = ""
    half: bool = False
    told_source: str = ""

    def write(
        self,
        subnet: Subnet,
        state: Mapping[str, Tensor],
        folder: Path,
        images: Tensor | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> float | None:
        """Write the plain `state` of one size; with images, the difference that `check` finds.

        texts: contents of further files, by name. UserError, and nothing written: a difference
        above rounding, or a folder of someone else.
        """
        _refuse_foreign(folder)
        limit = HALF_LIMIT if self.half else LIMIT
        with whole_folder(folder) as partial:
            self._fill(partial, subnet, state)
            for name, text in (texts or {}).items():
                (partial / name).write_text(text, "utf-8")
            if images is None:
                return None
            difference = check(partial, self.model, subnet, images)
            if self.any_size:
                tall = F.interpolate(images, scale_factor=(2.0, 1.0))
                difference = max(difference, check(partial, self.model, subnet, tall))
            if not difference <= limit:
                raise UserError(
                    f"{subnet}: the exported model differs from the elastic network by "
                    f"{difference:.3g} (at most {limit:g} is rounding); {folder} is not written"
                )
        return difference

    def _fill(self, folder: Path, subnet: Subnet, state: Mapping[str, Tensor]) -> None:
        found = form.of(self.model.kind)
        name, arguments = found.arguments(self.model.shape, subnet, state)
        weights, about = folder / WEIGHTS[self.style], self._about(subnet, name, arguments)
        if self.half:
            state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
        if self.style == "onnx":
            network = build(found.module, arguments, state)
            side = self.recipe.crops.global_size
            onnx_file.write(network, found.feature, weights, side, any_size=self.any_size)
        elif self.style == "hf":
            config, state = found.hf(self.model.shape, subnet, state)
            about = config | {"dtype": "float16" if self.half else "float32", MARK: about[MARK]}
            if self.model.shape.channels == COLOURS:  # its processors know no other images
                (folder / hf_folder.PROCESSOR).write_text(hf_folder.processor(self.recipe))
        elif self.style == "timm":
            name, arguments, state = found.timm(self.model.shape, subnet, state)
            about = self._about(subnet, name, arguments)
        else:
            (folder / MODULE).write_text(Path(found.module.__file__).read_text())
        if self.style != "onnx":
            save_file(dict(state), weights, metadata={"format": "pt"})
        (folder / RECIPE).write_text(json.dumps(about, indent=2) + "\n")
        if licence := licence_of(Path(self.source)):
            (folder / LICENCE).write_text(licence)

    def _about(self, subnet: Subnet, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """config.json; its timm part is what `local-dir:` and `hf_hub:` read."""
        evaluation, side = self.recipe.evaluation, self.recipe.crops.global_size
        found = form.of(self.model.kind)
        preprocessing = {
            "input_size": [self.model.shape.channels, side, side],
            "fixed_input_size": found.fixed_size,
            "interpolation": "bicubic",
            "crop_pct": evaluation.crop / evaluation.resize,
            "crop_mode": "center",
            "mean": list(self.recipe.augmentation.mean),
            "std": list(self.recipe.augmentation.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": found.first_conv,
            "classifier": found.classifier,
        }
        return {
            "architecture": name,
            "num_classes": 0,
            "num_features": self.model.feature_width(subnet),
            "global_pool": found.pool,
            "model_args": dict(arguments),
            "pretrained_cfg": preprocessing,
            MARK: {
                "size": str(subnet),
                "cut_from": str(self.model.space.intact),
                "source": self.told_source or self.source,
                "step": self.step,
                "format": self.style,
                **_values(self.recipe),
                **({"any_size": True} if self.any_size else {}),
                **({"half": True} if self.half else {}),
                **({"made": self.made} if self.made else {}),
                "note": f"trained at {side} px; {found.note}",
            },
        }

    def usage(self, subnet: Subnet, folder: Path) -> str:
        """The lines that use the model in that folder."""
        side, width = self.recipe.crops.global_size, self.model.feature_width(subnet)
        load = {
            "timm": f'timm.create_model("local-dir:{folder}", pretrained=True).eval()',
            "hf": f'transformers.AutoModel.from_pretrained("{folder}")',
            "state-dict": f'runpy.run_path("{folder / MODULE}")["load"]("{folder}")  # torch alone',
            "onnx": f'onnxruntime.InferenceSession("{folder / WEIGHTS["onnx"]}")',
        }
        run = ("feature = model(images)", "features = model.forward_features(images)")
        if self.style == "onnx":
            run = ('feature, features = model.run(None, {"images": images})',)
        elif self.style == "hf":
            run = ("found = model(images); found.pooler_output, found.last_hidden_state",)
        sides = f"rows, columns), trained at {side}" if self.any_size else f"{side}, {side})"
        lines = (
            f"# images: normalised float32 (B, {self.model.shape.channels}, {sides}",
            f"# feature (B, {width}); features: {form.of(self.model.kind).features}",
            f"model = {load[self.style]}",
            *run,
        )
        return "\n".join(f"  {line}" for line in lines)


def _values(recipe: Recipe) -> dict[str, Any]:
    """What becomes 0 and 1 of images that are measurements; {} of ordinary ones."""
    values = Values.of(recipe.data)
    return {} if values is None else {"values": asdict(values)}


def _refuse_foreign(folder: Path) -> None:
    """UserError unless the folder is new, empty, or an export that holds nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    ours = {
        RECIPE,
        MODULE,
        CARD,
        LICENCE,
        hf_folder.PROCESSOR,
        "__pycache__",
        *WEIGHTS.values(),
    }  # who imports MODULE leaves one
    if names and (not names <= ours or MARK not in _json(folder / RECIPE)):
        raise UserError(f"{folder} exists and is not an export of poa-ds: name another --out")


def is_of_transformers(folder: Path) -> bool:
    """Whether it is an export for transformers, whose tensors have other names."""
    return _json(folder / RECIPE).get(MARK, {}).get("format") == "hf"


def _json(path: Path) -> dict[str, Any]:
    try:
        check_regular(path)
        content = parse(path.read_bytes())
    except (UserError, OSError, ValueError):
        return {}  # not a file of ours
    return content if isinstance(content, dict) else {}


def reload(
    folder: Path, features: Callable[[Tensor, int], Tensor] = lambda hidden, rows: hidden
) -> nn.Module:
    """The exported model, built from the folder alone. features: as of hf_folder.Network."""
    if is_of_transformers(folder):
        return hf_folder.Network(folder, features)
    if (folder / WEIGHTS["timm"]).is_file():
        import timm  # seconds; needed here only

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if (folder / WEIGHTS["onnx"]).is_file():
        return onnx_file.Network(folder / WEIGHTS["onnx"])
    # not imported: that would leave its __pycache__ in the folder
    return runpy.run_path(str(folder / MODULE))["load"](folder)


@torch.inference_mode()
def check(folder: Path, model: ElasticBackbone, subnet: Subnet, images: Tensor) -> float:
    """The largest difference of any token between the elastic network and the exported one.

    images: normalised float (B, channels, rows, columns).
    """
    found = form.of(model.kind)

    def features(hidden: Tensor, rows: int) -> Tensor:
        return found.hf_features(hidden, model.shape, rows)

    wanted, network = model(images, subnet), reload(folder, features)
    tokens = found.tokens(network.forward_features(images), model.shape)
    feature = network(images)  # what users call: the class feature alone
    return max((wanted - tokens).abs().max().item(), (wanted[:, 0] - feature).abs().max().item())


def check_images(recipe: Recipe, shards: Path | None = None) -> tuple[Tensor, str]:
    """(normalised images, what they are).

    Of the folder, else of the evaluation's queries where they are, else random.
    """
    evaluation, side = recipe.evaluation, recipe.crops.global_size
    place = shards or Path(evaluation.queries)
    if shards is None and not (evaluation.queries and place.exists()):
        return torch.randn(CHECKED_IMAGES, recipe.data.channels, side, side), "random images"
    folder = open_folder(str(place), recipe.data)
    ids = range(min(CHECKED_IMAGES, len(folder)))
    resize = round(side * evaluation.resize / evaluation.crop)
    images, _ = next(eval_batches(folder, ids, resize=resize, crop=side, batch_size=CHECKED_IMAGES))
    mean, std = (
        rearrange(torch.tensor(x), "c -> c 1 1")
        for x in (recipe.augmentation.mean, recipe.augmentation.std)
    )
    return (images / 255 - mean) / std, f"images of {place}"

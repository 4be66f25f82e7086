"""An extracted size as a folder that timm opens, and the proof that it computes the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from poa_ds.config import Config
from poa_ds.data.index import ShardFolder
from poa_ds.data.loader import eval_batches
from poa_ds.elastic import ElasticBackbone
from poa_ds.errors import UserError
from poa_ds.snapshot import whole_folder
from poa_ds.space import Subnet

WEIGHTS = {"timm": "model.safetensors", "state-dict": "state_dict.safetensors"}
RECIPE = "config.json"
MARK = "poa_ds"  # a key of RECIPE: the folder is one of ours
ARCHITECTURE = "vit_small_patch16_224"  # of timm; model_args override every number of it
LIMIT = 1e-4  # of a check; rounding in float32 amounts to about 1e-5
CHECKED_IMAGES = 8


@dataclass(frozen=True)
class Export:
    """How sizes of one teacher are written. source: where the teacher came from, for the record."""

    model: ElasticBackbone
    config: Config
    step: int
    source: str
    style: Literal["timm", "state-dict"] = "timm"

    def write(
        self,
        subnet: Subnet,
        state: Mapping[str, Tensor],
        folder: Path,
        images: Tensor | None = None,
    ) -> float | None:
        """Write the plain `state` of one size; with images, the difference that `check` finds.

        UserError, and nothing written: a difference above LIMIT, or a folder of someone else.
        """
        _refuse_foreign(folder)
        with whole_folder(folder) as partial:
            save_file(dict(state), partial / WEIGHTS[self.style], metadata={"format": "pt"})
            (partial / RECIPE).write_text(json.dumps(self._about(subnet, state), indent=2) + "\n")
            if images is None:
                return None
            difference = check(partial, self.model, subnet, images)
            if not difference <= LIMIT:
                raise UserError(
                    f"{subnet}: the exported model differs from the elastic network by "
                    f"{difference:.3g} (at most {LIMIT:g} is rounding); {folder} is not written"
                )
        return difference

    def _about(self, subnet: Subnet, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """config.json; its timm part is what `local-dir:` and `hf_hub:` read."""
        recipe, evaluation = self.config.backbone, self.config.evaluation
        side = self.config.crops.global_size
        layer_scale = any(name.endswith(".gamma") for name in state)
        model_args = {
            "img_size": side,
            "patch_size": recipe.patch_size,
            "embed_dim": subnet.width,
            "depth": subnet.depth,
            "num_heads": subnet.width // recipe.head_dim,
            "mlp_ratio": recipe.mlp_ratio,
            "init_values": recipe.layer_scale if layer_scale else None,
        }
        preprocessing = {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": evaluation.crop / evaluation.resize,
            "crop_mode": "center",
            "mean": list(self.config.augmentation.mean),
            "std": list(self.config.augmentation.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        return {
            "architecture": ARCHITECTURE,
            "num_classes": 0,
            "num_features": subnet.width,
            "global_pool": "token",
            "model_args": model_args,
            "pretrained_cfg": preprocessing,
            MARK: {
                "size": str(subnet),
                "cut_from": str(self.model.space.intact),
                "source": self.source,
                "step": self.step,
                "note": f"trained at {side} px; elsewhere timm resizes the position embedding "
                "differently from the training, so features differ a little there",
            },
        }


def _refuse_foreign(folder: Path) -> None:
    """UserError unless the folder is new, empty, or an export that holds nothing else."""
    if not folder.exists() and not folder.is_symlink():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    ours = {RECIPE, *WEIGHTS.values()}
    if names and (not names <= ours or MARK not in _json(folder / RECIPE)):
        raise UserError(f"{folder} exists and is not an export of poa-ds: name another --out")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # not a file of ours
    return content if isinstance(content, dict) else {}


def reload(folder: Path) -> nn.Module:
    """The exported model, built by timm from the folder alone."""
    import timm  # seconds; needed here only

    if (folder / WEIGHTS["timm"]).is_file():
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    arguments = json.loads((folder / RECIPE).read_text())["model_args"]
    model = timm.create_model(ARCHITECTURE, num_classes=0, **arguments)
    model.load_state_dict(load_file(folder / WEIGHTS["state-dict"]), strict=True)
    return model.eval()


@torch.inference_mode()
def check(folder: Path, model: ElasticBackbone, subnet: Subnet, images: Tensor) -> float:
    """The largest difference of any token between the elastic network and the exported one.

    images: normalised float (B, 3, S, S) of the training resolution.
    """
    return (model(images, subnet) - reload(folder).forward_features(images)).abs().max().item()


def check_images(config: Config) -> tuple[Tensor, str]:
    """(normalised images, what they are): of the evaluation's queries, or random without them."""
    evaluation, side = config.evaluation, config.crops.global_size
    queries = Path(evaluation.queries)
    if not evaluation.queries or not queries.is_dir():
        return torch.randn(CHECKED_IMAGES, 3, side, side), "random images"
    folder = ShardFolder.open(queries)
    ids = range(min(CHECKED_IMAGES, len(folder)))
    resize = round(side * evaluation.resize / evaluation.crop)
    images, _ = next(eval_batches(folder, ids, resize=resize, crop=side, batch_size=CHECKED_IMAGES))
    mean, std = (
        torch.tensor(x).view(3, 1, 1) for x in (config.augmentation.mean, config.augmentation.std)
    )
    return (images / 255 - mean) / std, f"images of {queries}"


def usage(folder: Path, subnet: Subnet, config: Config, style: str) -> str:
    """The lines that use an exported model."""
    side = config.crops.global_size
    tokens = 1 + (side // config.backbone.patch_size) ** 2
    if style == "timm":
        load = f'model = timm.create_model("local-dir:{folder}", pretrained=True).eval()'
    else:
        load = f'model = poa_ds.extract.reload(Path("{folder}"))  # or into DINOv2: same names'
    return (
        f"  {load}\n"
        f"  tokens = model.forward_features(images)  "
        f"# normalised (B, 3, {side}, {side}) -> (B, {tokens}, {subnet.width})\n"
        f"  cls, patches = tokens[:, 0], tokens[:, 1:]"
    )

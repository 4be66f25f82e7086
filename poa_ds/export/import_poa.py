"""The teacher of a checkpoint of the published POA code as one of ours."""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.checkpoint.deployed import differences, shapes
from poa_ds.export.published import described, heads_from_published
from poa_ds.model import form
from poa_ds.model.heads import HeadBank
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.typed_yaml import brief


def read_checkpoint(path: Path, parts: Sequence[str] = ("teacher",)) -> dict[str, Tensor]:
    """The teacher of a published checkpoint under its own names, without `module.`.

    Reads {"teacher": {...}}, or another of the `parts`, or a bare state dict; only tensors, no
    code in it is run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(_more_than_tensors(path, str(error))) from error
    except Exception as error:  # of any kind, where bytes are taken for a pickle's instructions
        cause = f"{type(error).__name__}: {error}".split(". ")[0].split("\n")[0]
        raise UserError(f"{path} is damaged or no checkpoint of PyTorch ({cause})") from error
    state = {}
    if isinstance(content, dict):
        state = next((content[part] for part in parts if part in content), content)
    if not (isinstance(state, dict) and state and _names_tensors(state)):
        found = brief([*content]) if isinstance(content, dict) else type(content).__name__
        wanted = " or ".join(f"`{part}`" for part in parts)
        raise UserError(f"{path} holds no {wanted} with named tensors, but {found}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _names_tensors(state: dict) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())


def _more_than_tensors(path: Path, cause: str) -> str:
    """Our own words: torch's advise the setting that runs what is in the file."""
    found = re.search(r"GLOBAL (\S+)", cause)
    what = f" ({found[1]})" if found else ""
    return (
        f"{path} is damaged or holds more than tensors{what}: it is not read, since reading it "
        "would run code out of the file. Where it was made, save the tensors alone, "
        'torch.save({"teacher": teacher.state_dict()}, FILE), and import that file'
    )


def from_poa_teacher(state: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """Backbone and, where they are there, heads under our names, checked against the recipe."""
    wanted, head_dim = _shapes(recipe), recipe.backbone.head_dim
    named = re.compile(r"^(?:backbone|dino_head|ibot_head)\.")
    parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "dino_head": {}, "ibot_head": {}}
    for name, tensor in state.items():
        prefix = name.split(".")[0] if named.match(name) else "backbone"
        parts[prefix][name] = tensor
    qkv = [t for name, t in state.items() if ".attn.qkv." in name]
    rows = [tensor.shape[0] if tensor.ndim else 1 for tensor in qkv]
    if any(row % (3 * head_dim) for row in rows):
        raise UserError(
            f"attention of width {rows[0] // 3} does not divide into heads of "
            f"backbone.head_dim {head_dim}: {described(state)}"
        )
    named_ours = form.of(recipe.backbone.name).from_published(
        parts["backbone"], derived.shape(recipe)
    )
    ours = {f"backbone.{name}": tensor for name, tensor in named_ours.items()}
    for theirs, prefix in (("dino_head", "heads"), ("ibot_head", "ibot_heads")):
        ours |= {f"{prefix}.{n}": t for n, t in heads_from_published(parts[theirs]).items()}
    present = {name.split(".")[0] for name in ours}
    problems = differences(
        {name: shape for name, shape in wanted.items() if name.split(".")[0] in present},
        shapes(ours),
    )
    if problems or "backbone" not in present:
        sizes = derived.space(recipe)
        raise UserError(
            f"the tensors do not fit the recipe (largest size {sizes.intact}, patch "
            f"{recipe.backbone.patch_size}, heads {list(recipe.heads.prototypes)}): "
            f"{described(state)}. {'; '.join(problems)}"
        )
    return ours


def _shapes(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the recipe's teacher."""
    heads = recipe.heads
    with torch.device("meta"):
        model = backbone(recipe)
        parts = {"backbone": model}
        for name in ("heads", "ibot_heads"):
            parts[name] = HeadBank(
                model.feature_width(model.space.intact),
                heads.prototypes,
                hidden=heads.hidden,
                bottleneck=heads.bottleneck,
                layers=heads.layers,
            )
    return {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }

"""The consolidated teacher: one safetensors file beside its recipe, readable without the run.

RUN/teacher/step00000300/ holds teacher.safetensors and config.json; RUN/teacher/latest names the
newest such folder.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from poa_ds.model.backbone import ElasticBackbone
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text, whole_folder
from poa_ds.system.json_text import parse_object
from poa_ds.system.regular import check_regular
from poa_ds.system.run_folder import LICENCE, RunFolder
from poa_ds.system.typed_yaml import plain

FORMAT = 1
WEIGHTS, RECIPE, LATEST = "teacher.safetensors", "config.json", "latest"
BACKBONE = "backbone."


def publish(run: Path, tensors: Mapping[str, Tensor], recipe: Recipe, step: int) -> Path:
    """The folder RUN/teacher/step<step>, written whole; `latest` names it afterwards."""
    folder = RunFolder(run).teacher(step)
    write_teacher(folder, tensors, recipe, step, licence=licence_of(run))
    replace_text(folder.parent / LATEST, folder.name + "\n")
    return folder


def licence_of(folder: Path) -> str:
    """What goes with the weights of a run, a teacher or an exported model; empty: nothing."""
    text = folder / LICENCE
    return text.read_text() if text.is_file() else ""


def write_teacher(
    folder: Path,
    tensors: Mapping[str, Tensor],
    recipe: Recipe,
    step: int,
    *,
    source: str = "",
    licence: str = "",
) -> None:
    """Write `backbone.*`, `heads.*`, `ibot_heads.*` in float32 and the recipe into a new folder.

    licence: text that goes with the weights, into every export.
    """
    about = {"format": FORMAT, "step": step, "source": source, "config": plain(recipe)}
    whole = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
    with whole_folder(folder) as partial:
        save_file(whole, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / RECIPE).write_text(json.dumps(about, indent=1) + "\n")
        if licence:
            (partial / LICENCE).write_text(licence)


def load_teacher(run: Path, step: int | None = None) -> tuple[ElasticBackbone, Recipe, int]:
    """(model on the CPU in float32 and eval mode, its recipe, its step).

    run: an output directory (the newest teacher, or that of `step`), or one teacher's folder.
    """
    folder = find_teacher(run, step)
    recipe, found_step = read_recipe(folder / RECIPE)
    with torch.device("meta"):
        model = backbone(recipe)
    tensors = _read_backbone(folder / WEIGHTS)
    problems = differences(shapes(model.state_dict()), shapes(tensors))
    if problems:
        raise UserError(f"{folder / WEIGHTS} does not fit its {RECIPE}: {'; '.join(problems)}")
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.requires_grad_(False).eval(), recipe, found_step


def find_teacher(run: Path, step: int | None = None) -> Path:
    """The folder with the teacher's files; UserError says what there is instead."""
    run = Path(run)
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; expected the output directory of a run")
    if (run / WEIGHTS).is_file():
        return run
    teachers = RunFolder(run).teachers
    steps = {
        int(path.name.removeprefix("step")): path
        for path in _listed(teachers)
        if path.name.startswith("step")
        and path.name.removeprefix("step").isdecimal()
        and (path / WEIGHTS).is_file()
    }
    if not steps:
        raise UserError(
            f"{run} holds no teacher: neither {WEIGHTS} nor {teachers.name}/step*/{WEIGHTS} "
            "(a run writes one at each evaluation and at its end)"
        )
    if step is not None and step not in steps:
        there = ", ".join(map(str, sorted(steps)))
        raise UserError(f"{run} has no teacher of step {step}; there are those of {there}")
    if step is None:
        latest = teachers / LATEST
        named = teachers / latest.read_text(errors="replace").strip() if latest.is_file() else None
        return named if named in steps.values() else steps[max(steps)]
    return steps[step]


def _listed(folder: Path) -> list[Path]:
    """What is in the folder, nothing where there is none; what may not be read is an OSError."""
    return [*folder.iterdir()] if folder.is_dir() else []


def weights_hash(teacher: Path) -> str:
    """sha256 of the weights in a teacher's folder: what was measured with them says so."""
    with (teacher / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_recipe(path: Path) -> tuple[Recipe, int]:
    """(recipe, step) of a teacher's config.json."""
    check_regular(path)
    try:
        about = parse_object(path.read_bytes(), format=int, step=int, config=dict)
        found, step, tree = about["format"], about["step"], about["config"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error
    if found != FORMAT:
        raise UserError(f"{path} has format {found!r}; this program reads format {FORMAT}")
    return load.kept(tree), step


def _read_backbone(path: Path) -> dict[str, Tensor]:
    try:
        path.open("rb").close()  # what safetensors may not read it calls missing
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(BACKBONE)]
            found = {name.removeprefix(BACKBONE): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error
    for name, tensor in found.items():
        if tensor.dtype != torch.float32:
            raise UserError(f"{path} is damaged: {name} is {tensor.dtype}, not torch.float32")
    return found


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Of named tensors, for `differences`."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def differences(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, most: int = 4
) -> list[str]:
    """What is missing, unexpected or of another shape among named tensors; [] when they agree."""
    parts = []
    for kind, names in (
        ("missing", [n for n in wanted if n not in found]),
        ("unexpected", [n for n in found if n not in wanted]),
        (
            "another shape",
            [
                f"{n} {list(found[n])} instead of {list(wanted[n])}"
                for n in wanted
                if n in found and found[n] != wanted[n]
            ],
        ),
    ):
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            parts.append(f"{kind}: {', '.join(names[:most])}{more}")
    return parts

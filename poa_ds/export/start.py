"""What a new run begins with where its recipe names a finished network: its backbone.

Student and teacher get the same weights, all of which are trained on; heads start at random, but
for the first layer of the projection head where a classifier stands on it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from poa_ds.checkpoint import deployed as of_teacher
from poa_ds.checkpoint.deployed import (
    differences,
    find_teacher,
    licence_of,
    load_teacher,
    read_recipe,
    shapes,
)
from poa_ds.engine.networks import Networks
from poa_ds.export.extract import extract
from poa_ds.export.folder import RECIPE, WEIGHTS, is_of_transformers
from poa_ds.methods import frozen_head
from poa_ds.model import first_layer, form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object
from poa_ds.system.run_folder import named

START_ONLY = "init_values"  # an argument of plain networks that says how they would begin


@torch.no_grad()
def begin(networks: Networks, start: str) -> str:
    """Give student and average the backbone that `start` names, before the first step.

    What was made of its first layer, in words, or an empty text. UserError: there is none, or it
    does not fit.
    """
    own = networks.backbone
    try:
        tensors, told = _tensors(start, own)
        own.load_state_dict(tensors, strict=False)  # a plain one has no mask token
        if projection := getattr(networks.student, "projection", None):
            projection.load_state_dict(_projection(start, projection.out_features))
    except UserError as error:
        raise UserError(f"start {start}: {error}") from error
    for name, (parameter, average) in networks.averaged().items():
        if name.startswith(("backbone.", "projection.")):
            average.copy_(parameter)
    return told


def _projection(start: str, channels: int) -> dict[str, Tensor]:
    """The first layer of head 0 of what `start` names, of its size."""
    place, size = named(start)
    folder = find_teacher(place)
    recipe, _ = read_recipe(folder / of_teacher.RECIPE)
    space = derived.space(recipe)
    subnet = space.parse(size) if size else space.intact
    found = frozen_head.first_layer(folder / of_teacher.WEIGHTS, recipe, subnet)
    if len(found["bias"]) != channels:
        raise UserError(f"finetune.projected {channels}: its head has {len(found['bias'])}")
    return found


def check(own: ElasticBackbone, start: str, *, projected: int = 0) -> None:
    """UserError unless `start` names a network that fits `own`, with such a head if projected."""
    try:
        _tensors(start, own)
        if projected:
            _projection(start, projected)
    except UserError as error:
        raise UserError(f"start {start}: {error}") from error


def licence(start: str) -> str:
    """What goes with the weights that `start` names; empty: nothing."""
    place, _ = named(start)
    extracted = any((place / name).is_file() for name in WEIGHTS.values())
    return licence_of(place if extracted else find_teacher(place))


def _tensors(start: str, own: ElasticBackbone) -> tuple[dict[str, Tensor], str]:
    """(a backbone that fits, under the names of `own`; what was made of its first layer)."""
    place, size = named(start)
    if (place / WEIGHTS["onnx"]).is_file():
        raise UserError("an ONNX file has no weights by name: extract it with --format state-dict")
    if is_of_transformers(place):
        raise UserError("a folder of transformers has other names: extract it with --format timm")
    for style in ("timm", "state-dict"):
        if (place / WEIGHTS[style]).is_file():
            if size:
                raise UserError(f"{place} is one size, leave out :{size}")
            return _extracted(place, own, timm=style == "timm")
    model, _, _ = load_teacher(place)
    return _of_run(model, model.space.parse(size) if size else model.space.intact, own)


def _of_run(
    model: ElasticBackbone, subnet: Subnet, own: ElasticBackbone
) -> tuple[dict[str, Tensor], str]:
    intact, theirs, ours = own.space.intact, form.of(model.kind), form.of(own.kind)
    whole = model.kind == own.kind and subnet == model.space.intact
    if theirs.module is not ours.module:
        raise UserError(f"it is a {theirs.title}, the recipe's backbone a {ours.title}")
    state, wanted = extract(model, subnet), extract(own, intact)
    plain, arguments, told = _for_images(state, state.arguments, wanted, own)
    _check(own, (wanted, wanted.arguments), (plain, arguments))
    if not whole:
        return ours.from_plain(plain, own.shape), told
    theirs = _norms_of_widths(model.state_dict(), own.state_dict())
    tensors, _, _ = _for_images(theirs, {}, own.state_dict(), own)
    _check(own, (own.state_dict(), {}), (tensors, {}))
    return tensors, told


def _norms_of_widths(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state with norms as `wanted` has them: of each width, or the intact one's for all."""
    found = dict(state)
    for name, ours in wanted.items():
        theirs = found.get(name)
        if theirs is None or "norm" not in name or theirs.shape[-1:] != ours.shape[-1:]:
            continue
        if theirs.ndim < ours.ndim:
            found[name] = theirs.expand_as(ours)
        elif theirs.ndim > ours.ndim:
            found[name] = theirs[-1]  # the widest, which is the last
    return found


def _extracted(place: Path, own: ElasticBackbone, *, timm: bool) -> tuple[dict[str, Tensor], str]:
    weights = place / WEIGHTS["timm" if timm else "state-dict"]
    try:
        about = parse_object((place / RECIPE).read_bytes(), architecture=str, model_args=dict)
        state = load_file(weights)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{place / RECIPE} or {weights.name} cannot be read: {error}") from error
    ours, intact = form.of(own.kind), own.space.intact
    wanted = extract(own, intact)
    name, arguments = ours.arguments(own.shape, intact, wanted)
    if not about["architecture"].startswith(name.split("_")[0]):
        raise UserError(f"it is a {about['architecture']}, the recipe's backbone a {ours.title}")
    if timm:
        why = ours.not_timm(own.shape, intact)
        if why:
            raise UserError(f"it is timm's, and the recipe's {intact} is not: {why}")
        _, arguments, _ = ours.timm(own.shape, intact, wanted)
        state = _plain_of_timm(state, own)
    if not any(name.endswith(".gamma") for name in state):  # folded into the layers before
        gammas = {name: t for name, t in wanted.items() if name.endswith(".gamma")}
        state |= {name: torch.ones_like(tensor) for name, tensor in gammas.items()}
    state, theirs, told = _for_images(state, about["model_args"], wanted, own)
    _check(own, (wanted, arguments), (state, theirs))
    return ours.from_plain(state, own.shape), told


def _for_images(
    state: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    wanted: Mapping[str, Tensor],
    own: ElasticBackbone,
) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """State and arguments with a first layer for the images of `own`; what was made of it."""
    name, channels = first_layer.of(wanted), own.shape.channels
    weight = state.get(name)
    if weight is None or weight.ndim != 4:  # then told as another difference
        return dict(state), dict(arguments), ""
    others = {key: value for key, value in arguments.items() if key != "in_chans"}
    made = dict(state) | {name: first_layer.adapted(weight, channels)}
    told = first_layer.described(weight.shape[1], channels)
    return made, others | form.in_chans(own.shape), told


def _plain_of_timm(state: dict[str, Tensor], own: ElasticBackbone) -> dict[str, Tensor]:
    """UserError: a tensor is missing that belongs to another, or there is no way back."""
    try:
        return form.of(own.kind).of_timm(state, own.shape)
    except KeyError as error:
        raise UserError(f"it lacks {error}") from error


def _check(
    own: ElasticBackbone,
    wanted: tuple[Mapping[str, Tensor], Mapping[str, Any]],
    found: tuple[Mapping[str, Tensor], Mapping[str, Any]],
) -> None:
    """UserError unless tensors and arguments are those of the largest size."""
    (tensors, ours), (their_tensors, theirs) = wanted, found
    problems = [
        f"{name} {theirs.get(name)} instead of {value}"
        for name, value in ours.items()
        if name != START_ONLY and theirs.get(name) != value
    ]
    if not problems:
        problems = differences(shapes(tensors), shapes(their_tensors))
    if problems:
        raise UserError(
            f"it does not fit the largest size of the recipe, {own.space.intact}:"
            f" {'; '.join(problems)}"
        )

"""The DeepSpeed configuration: the user's JSON file plus what the recipe owns.

One owner per number: batch sizes, precision, clipping and accumulation come from the recipe. The
file may repeat such a number or say "auto"; another value is an error that names both places.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poa_ds.recipe import shipped
from poa_ds.recipe.checks import check_world
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.json_text import parse
from poa_ds.system.typed_yaml import brief

# what DeepSpeed could do as well, and who does it here
FORBIDDEN = {
    "optimizer": "the recipe's section `optimizer`",
    "scheduler": "the recipe's section `schedule`",
    "amp": "the recipe's key `precision`",
    "bfloat16": "the recipe's key `precision` (and is an old name of the section `bf16`)",
    "torch_autocast": "the recipe's key `precision`",
    "elasticity": "the recipe's section `batch`: its slots fit every number of ranks dividing them",
}
# they replace the fp32 master weights, which the teacher's slow average needs
LOW_PRECISION_MASTERS = {
    "bf16": ("immediate_grad_update", "bf16_master_weights_and_grads", "bf16_optimizer_states"),
    "fp16": ("auto_cast", "fp16_master_weights_and_grads"),
}
OFFLOADS = ("offload_optimizer", "offload_param", "cpu_offload", "cpu_offload_param")
FEW_PRINTS = 10**9  # DeepSpeed's own progress lines; ours come every log_every steps


def read(path: Path | None) -> dict[str, Any]:
    """The content of a DeepSpeed file, perhaps a shipped one's name; stage 0 without a path."""
    if path is None:
        return {}
    path = shipped.find(path, ".json")
    try:
        text = shipped.text(path, "DeepSpeed file")
        content = parse(text, object_pairs_hook=_no_key_twice)
    except ValueError as error:
        raise UsageError(f"DeepSpeed file {path}: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"DeepSpeed file {path}: expected an object {{...}}")
    return content


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} is there twice")
    return content


def resolved(
    recipe: Recipe, file: dict[str, Any], world_size: int, *, source: str = "the DeepSpeed file"
) -> dict[str, Any]:
    """The whole DeepSpeed configuration of a run on `world_size` ranks.

    file: the user's JSON, passed through where the recipe owns nothing; `source` is its name in
    messages. UsageError: a conflict, or something that this program cannot do under DeepSpeed.
    """
    check_world(recipe, world_size)
    for section in ("zero_optimization", "data_types", "bf16", "fp16"):
        if not isinstance(file.get(section, {}), dict):
            raise UsageError(f"{source}: {section} is {brief(file[section])}: expected an object")
    zero = file.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if type(stage) is not int or stage not in (0, 1, 2, 3):
        raise UsageError(
            f"{source}: zero_optimization.stage is {brief(stage)}: allowed are 0, 1, 2, 3"
        )
    _check_features(file, zero, source)
    _check_stage(recipe, file, stage, world_size, source)
    merged = dict(file)
    for path, value, owner in _owned(recipe, world_size):
        _set(merged, path, value, owner, source)
    if recipe.precision == "bf16" and stage in (2, 3) and recipe.batch.slots > world_size:
        # the sum over a rank's slots would lose the small gradients in bf16
        merged["data_types"] = {"grad_accum_dtype": "fp32"} | merged.get("data_types", {})
    return merged


def _owned(recipe: Recipe, world_size: int) -> Iterator[tuple[str, object, str]]:
    """(DeepSpeed key, value, where the recipe says so)."""
    batch = recipe.batch
    images, slots = batch.images_per_slot, batch.slots
    yield "train_micro_batch_size_per_gpu", images, f"batch.images_per_slot {images}"
    yield "train_batch_size", images * slots, f"batch.slots {slots} x images_per_slot {images}"
    accumulation = slots // world_size
    shared = f"batch.slots {slots} on {world_size} ranks"
    yield "gradient_accumulation_steps", accumulation, shared
    clips = f"optimizer.clip_backbone {recipe.optimizer.clip_backbone:g} and clip_heads"
    yield "gradient_clipping", 0.0, f"{clips} (each module is clipped on its own)"
    for kind in ("bf16", "fp16"):
        yield f"{kind}.enabled", recipe.precision == kind, f"precision {recipe.precision}"
    if recipe.precision == "bf16":
        agreed = "max_bad_steps (all ranks agree on every step's numbers already)"
        yield "bf16.check_grad_overflow", False, agreed
    yield "zero_allow_untested_optimizer", True, "the optimizer, which is not one of DeepSpeed's"
    yield "steps_per_print", FEW_PRINTS, f"log_every {recipe.log_every}"


def _set(merged: dict[str, Any], path: str, value: object, owner: str, source: str) -> None:
    section, _, key = path.rpartition(".")
    if section:
        merged[section] = dict(merged.get(section, {}))
    place = merged[section] if section else merged
    given = place.get(key, "auto")
    if given != "auto" and (given != value or isinstance(given, bool) != isinstance(value, bool)):
        raise UsageError(
            f"{source} says {path} = {brief(given)}, the recipe says {value!r} ({owner}):"
            f" the recipe owns this number, so remove it from the file"
        )
    place[key] = value


def _check_features(file: dict[str, Any], zero: dict[str, Any], source: str) -> None:
    for key, owner in FORBIDDEN.items():
        if key in file and file[key] not in (None, {}, {"enabled": False}):
            raise UsageError(f"{source}: remove the section {key!r}; it belongs to {owner}")
    for key in OFFLOADS:
        chosen = zero.get(key)
        if chosen and not (isinstance(chosen, dict) and chosen.get("device") in ("none", None)):
            raise UsageError(
                f"{source}: zero_optimization.{key} is not supported"
                " (gradient clipping and the sharded teacher need the states on the device)"
            )
    for section, keys in LOW_PRECISION_MASTERS.items():
        for key in keys:
            if file.get(section, {}).get(key):
                raise UsageError(f"{source}: {section}.{key} is not supported: masters are fp32")


def _check_stage(
    recipe: Recipe, file: dict[str, Any], stage: int, world_size: int, source: str
) -> None:
    if stage == 0 and (world_size > 1 or recipe.precision != "fp32"):
        raise UsageError(
            f"{source}: ZeRO stage 0 is for one process in fp32, and this run has {world_size}"
            f" with precision {recipe.precision}: use --deepspeed_config ds_configs/zero1.json"
        )
    if recipe.precision != "bf16" or stage != 1:
        return
    sums = file.get("data_types", {}).get("grad_accum_dtype")
    if sums == "fp32":
        raise UsageError(
            f"{source}: data_types.grad_accum_dtype fp32 with ZeRO stage 1 and precision bf16"
            " selects another DeepSpeed optimizer, which is not supported: use stage 2 or 3"
        )
    if recipe.batch.slots > world_size and sums != "bf16":
        raise UsageError(
            f"{source}: ZeRO stage 1 would add up the {recipe.batch.slots // world_size} slots of"
            " each rank in bf16: use ds_configs/zero2.json (fp32 sums), or say in this file that"
            ' bf16 sums are wanted: "data_types": {"grad_accum_dtype": "bf16"}'
        )

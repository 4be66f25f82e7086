"""Corrupted images of many kinds, each at some levels (ImageNet-C): errors by what was learnt.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (arXiv 1903.12261).
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from poa_ds.evaluate.score_rows import CORRUPTED, ScoreRow, identity
from poa_ds.system import dist, paths
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.json_text import parse
from poa_ds.system.regular import check_regular

BEGIN = f"{CORRUPTED}/"  # of a set's name: corrupted/fog/3
LEVELS = ("1", "2", "3", "4", "5")
# percent, the mean over five levels. Source: the publication's code
ALEXNET = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.2640,
    "defocus_blur": 81.9880,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.8360,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}


@dataclass(frozen=True)
class Reference:
    """Errors in percent by kind of another network, by which errors are divided; name: whose."""

    name: str
    errors: Mapping[str, float]
    levels: Sequence[str] | None = None  # for which alone they are


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where corrupted images lie."""
    parser.add_argument(
        "--corruptions",
        type=paths.path,
        metavar="ROOT",
        help="ImageNet-C: labelled images in ROOT/KIND/LEVEL, measured too; all 75 are "
        "75 times the validation images",
    )
    parser.add_argument(
        "--reference",
        type=paths.path,
        metavar="FILE",
        help="JSON of kind: error in percent, by which mCE divides (AlexNet's of ImageNet-C)",
    )


def places(args: argparse.Namespace) -> dict[str, str]:
    """Name -> place of each kind and level; none without --corruptions.

    UserError: there are none, or kinds have other levels.
    """
    if args.corruptions is None:
        if args.reference:
            raise UsageError("--reference is for --corruptions ROOT: give one")
        return {}
    root: Path = args.corruptions
    kinds = {kind: _folders(root / kind) for kind in _folders(root)}
    if not any(kinds.values()):
        raise UserError(f"--corruptions {root}: no folders KIND/LEVEL in it")
    first = next(iter(kinds))
    for kind, levels in kinds.items():
        if levels != kinds[first]:
            raise UserError(
                f"--corruptions {root}: {first} has levels {', '.join(kinds[first])}, {kind} "
                f"{', '.join(levels) or 'none'}: all must have the same"
            )
    if args.reference and (lacking := sorted(reference(args).errors.keys() - kinds.keys())):
        raise UserError(f"--reference {args.reference} has kinds that {root} lacks: {lacking[:3]}")
    return {f"{BEGIN}{k}/{v}": str(root / k / v) for k, levels in kinds.items() for v in levels}


def _folders(path: Path) -> list[str]:
    try:
        return sorted(f.name for f in path.iterdir() if f.is_dir() and f.name[0] != ".")
    except OSError as error:
        raise UserError(f"--corruptions {path}: {error.strerror}") from error


def reference(args: argparse.Namespace) -> Reference:
    """By whose errors is divided. UserError: the file does not say them."""
    path: Path | None = args.reference
    if path is None:
        return Reference("AlexNet", ALEXNET, LEVELS)
    check_regular(path)
    try:
        errors = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--reference {path}: {error}") from error
    if not isinstance(errors, dict) or not errors:
        raise UserError(f"--reference {path}: not an object of kind: error in percent")
    for kind, value in errors.items():
        if type(value) not in (int, float) or not 0 < value <= 100:
            raise UserError(f"--reference {path}: {kind} is {value}, not a percentage above 0")
    return Reference(path.name, errors)


def say_cost(args: argparse.Namespace, images: Callable[[str], int], flops: float) -> None:
    """How much is looked at. images: place -> how many. flops: of one image by all sizes."""
    sets = places(args)
    if sets:
        every = sum(map(images, sets.values()))
        if dist.is_main():
            kinds = len({name.split("/")[1] for name in sets})
            say(
                f"corruptions: {kinds} kinds x {len(sets) // kinds} levels, {every:,} images = "
                f"{every * flops:.2g} FLOPs"
            )


def gathered(rows: Sequence[ScoreRow], args: argparse.Namespace) -> list[ScoreRow]:
    """The rows with those of kinds and levels as errors of kinds, their mean, and mCE."""
    kept = [row for row in rows if not row.set.startswith(BEGIN)]
    own: dict[Any, dict[str, list[ScoreRow]]] = {}
    for row in rows:
        if row.set.startswith(BEGIN) and row.metric.startswith("top1"):
            kinds = own.setdefault((row.size, row.metric, row.chosen_by), {})
            kinds.setdefault(row.set.split("/")[1], []).append(row)
    return kept + [row for kinds in own.values() for row in _errors(kinds, reference(args))]


def _errors(kinds: Mapping[str, Sequence[ScoreRow]], by: Reference) -> list[ScoreRow]:
    """One size's, by one choice: kind -> top-1 at each level.

    error: the mean of the levels' own, and at most so large, as all are of the same images.
    """
    errors = {
        k: (100 - fmean(r.value for r in of), fmean(r.error for r in of)) for k, of in kinds.items()
    }
    known = by.errors.keys() <= kinds.keys()
    averaged = {kind: of for kind, of in kinds.items() if kind in by.errors or not known}
    found = [_row(f"error_{k}", errors[k], {k: kinds[k]}) for k in kinds]
    mean = tuple(fmean(errors[k][i] for k in averaged) for i in (0, 1))
    found += [_row("top1", (100 - mean[0], mean[1]), averaged), _row("mean_error", mean, averaged)]
    levels = [row.set.split("/")[2] for row in next(iter(kinds.values()))]
    if known and by.levels in (None, tuple(levels)):
        mce = tuple(fmean(100 * errors[k][i] / by.errors[k] for k in averaged) for i in (0, 1))
        about = {"reference": {"name": by.name, "errors": dict(by.errors)}}
        found.append(_row("mce", mce, averaged, about))
    return found


def _row(
    metric: str,
    value: tuple[float, float],
    kinds: Mapping[str, Sequence[ScoreRow]],
    about: Mapping[str, Any] | None = None,
) -> ScoreRow:
    """In the place of its own rows; about: more for the protocol."""
    every = [row for of in kinds.values() for row in of]
    records = {row.set: row.protocol["val"] for row in every}
    val = {
        "images": sum(record["images"] for record in records.values()),
        "sets": sorted(records),
        "index_sha256": identity(records),
    }
    return replace(
        every[0],
        set=CORRUPTED,
        metric=metric + every[0].metric.removeprefix("top1"),
        value=value[0],
        error=value[1],
        setting={k: v for k, v in every[0].setting.items() if k != "spread"},  # of one set
        protocol={**every[0].protocol, "val": val, **(about or {})},
    )

"""poa-ds eval logistic: logistic regression on the features that `poa-ds embed` has written."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from poa_ds.evaluate import logistic, results
from poa_ds.evaluate.embedding_files import ABOUT
from poa_ds.system import arguments, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.json_text import parse_object
from poa_ds.system.progress import progress

# of two embeddings that one classifier can read
ALIKE = ("weights_sha256", "feature", "unit_length", "resize", "crop", "mean", "std", "precision")


@dataclass(frozen=True)
class Row:
    """One size. top1: percent of the validation images, error: its 95 %, in points.

    held_out: percent by which C was chosen, None where it was given.
    """

    size: str
    top1: float
    error: float
    c: float
    held_out: float | None
    train_images: int
    converged: bool


@dataclass(frozen=True)
class Embedding:
    """A folder of `poa-ds embed`."""

    folder: Path
    about: dict[str, Any]

    @classmethod
    def at(cls, folder: Path) -> "Embedding":
        """UserError: it is none, or one that has no labelled rows of a vector each."""
        path = folder / ABOUT
        if not path.is_file():
            raise UserError(f"{folder} holds no features: write them with `poa-ds embed`")
        try:
            about = parse_object(path.read_bytes(), setting=dict, files=dict, classes=list)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if about["setting"].get("format") != "safetensors":
            raise UsageError(f"{folder} has no labels in its files: embed --format safetensors")
        if about["setting"].get("feature") == "patches":
            raise UsageError(f"{folder} holds patches: embed --what cls, or cls+avg")
        return cls(folder, about)

    def rows(self, size: str) -> tuple[Tensor, Tensor]:
        """(features (n, C), labels (n,)) of the images that have a class and are not damaged."""
        found = load_file(self.folder / self.about["files"][size])
        good = (found["labels"] >= 0) & np.isfinite(found["features"]).all(1)
        features, labels = (torch.from_numpy(found[n][good]) for n in ("features", "labels"))
        if not len(labels):
            raise UserError(f"{self.folder}: no row has a class and finite features")
        return features.double(), labels.long()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval logistic`."""
    for name, what in (("train", "to learn from"), ("val", "to measure on")):
        parser.add_argument(
            f"--{name}",
            type=paths.path,
            required=True,
            metavar="FOLDER",
            help=f"features {what}: what `poa-ds embed` has written",
        )
    parser.add_argument(
        "--c", type=arguments.positive, help="strength of the data (chosen on held-out images)"
    )
    parser.add_argument(
        "--subset", type=percent, default=1.0, metavar="SHARE", help="of each class, e.g. 10%%"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (%(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def percent(text: str) -> float:
    """A share such as 10%."""
    try:
        share = float(text.strip().removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not text.strip().endswith("%") or not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0% up to 100%")
    return share


def run(args: argparse.Namespace) -> int:
    """Print what each size reaches; 1 where one is not converged."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here")
    train, val = Embedding.at(args.train), Embedding.at(args.val)
    check_alike(train, val)
    sizes = [size for size in train.about["files"] if size in val.about["files"]]
    numbers = matched(train, val)
    found = []
    for size in progress(sizes, total=len(sizes), label="logistic", unit="sizes"):
        x, labels = (part.to(args.device) for part in train.rows(size))
        other, wanted = val.rows(size)
        wanted = numbers[wanted]
        found.append(measured(size, x, labels, other.to(args.device), wanted.to(args.device), args))
    if args.json:
        tell(json.dumps([asdict(row) for row in found], indent=1))
    else:
        tell(table(found, val.about["setting"]["step"]))
    late = [row.size for row in found if not row.converged]
    if late:
        say(f"warning: not converged: {', '.join(late)}")
    return int(bool(late))


def measured(
    size: str, x: Tensor, labels: Tensor, other: Tensor, wanted: Tensor, args: argparse.Namespace
) -> Row:
    """x, labels to learn from; other, wanted to measure on."""
    classes = int(labels.max()) + 1
    if args.subset < 1:
        kept = logistic.drawn(labels, args.subset, seed=args.seed)
        x, labels = x[kept], labels[kept]
    c, held_out = args.c, None
    if c is None:
        try:
            c, held_out = logistic.choose(x, labels, classes, seed=args.seed)
        except ValueError as error:
            raise UserError(f"{size}: {error}; give --c 1, say") from error
    fit = logistic.fit(x, labels, classes, c)
    top1 = fit.percent(other, wanted)
    error = results.error(top1, len(wanted))
    return Row(size, top1, error, c, held_out, len(labels), fit.converged)


def check_alike(train: Embedding, val: Embedding) -> None:
    """UsageError: features of other weights, or taken in another way, or the same images."""
    one, other = train.about["setting"], val.about["setting"]
    for name in ALIKE:
        if one.get(name) != other.get(name):
            raise UsageError(
                f"{train.folder} and {val.folder} differ in {name}: "
                f"{one.get(name)} and {other.get(name)}; one classifier cannot read both"
            )
    if one["images_sha256"] == other["images_sha256"]:
        raise UsageError(f"{train.folder} and {val.folder} hold the same images")
    if not set(train.about["files"]) & set(val.about["files"]):
        raise UsageError(f"{train.folder} and {val.folder} have no size in common")


def matched(train: Embedding, val: Embedding) -> Tensor:
    """The number in `train` of each class of `val`, by name. UserError: it has none there."""
    number = {name: i for i, name in enumerate(train.about["classes"])}
    lacking = [name for name in val.about["classes"] if name not in number]
    if lacking:
        raise UserError(f"{val.folder} has classes that {train.folder} lacks: {lacking[:3]}")
    return torch.tensor([number[name] for name in val.about["classes"]])


def table(found: Sequence[Row], step: int) -> str:
    """A line per size."""
    width = max(4, *(len(row.size) for row in found))
    head = f"{'size':<{width}}{'top-1':>16}{'C':>10}{'held out':>10}{'learnt from':>13}"
    lines = [f"logistic regression on frozen features, step {step:,}", head]
    for row in found:
        held = "given" if row.held_out is None else f"{row.held_out:.1f} %"
        accuracy = f"{row.top1:.2f} ± {row.error:.1f} %"
        lines.append(
            f"{row.size:<{width}}{accuracy:>16}{row.c:>10.3g}{held:>10}{row.train_images:>13,}"
        )
    return "\n".join(lines)

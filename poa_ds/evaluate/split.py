"""Rows that are held out or learnt from alone: the same for all sizes, methods and ranks."""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poa_ds.system import arguments
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.regular import check_regular

DRAWS = 5  # of few labels
HELD_OUT = 0.1  # of each class, to choose a setting by
ENDS = frozenset((".jpeg", ".jpg", ".png", ".webp"))


@dataclass(frozen=True)
class Listed:
    """The images that a file names, one a line, as SimCLR's lists do: n04235860_14959.JPEG."""

    path: Path
    names: frozenset[str]
    sha256: str

    @classmethod
    def read(cls, path: Path) -> "Listed":
        check_regular(path)
        content = path.read_bytes()
        lines = content.decode(errors="replace").split("\n")
        names = frozenset(without_end(line.strip()) for line in lines if line.strip())
        if not names:
            raise UserError(f"--subset {path} names no image")
        return cls(path, names, hashlib.sha256(content).hexdigest())

    def record(self) -> dict[str, str]:
        """For a protocol."""
        return {"file": self.path.name, "sha256": self.sha256}

    def rows(self, keys: Sequence[str], place: str) -> np.ndarray:
        """The numbers of the images with these names. UserError: one is not there, or twice.

        keys: of all images of the place, as Images.key gives them.
        """
        rows = [row for row, key in enumerate(keys) if without_end(key) in self.names]
        found = {without_end(keys[row]) for row in rows}
        if lacking := sorted(self.names - found):
            raise UserError(
                f"--subset {self.path} names {len(lacking)} images that {place} lacks: "
                f"{', '.join(lacking[:3])}"
            )
        if len(found) < len(rows):
            raise UserError(f"{place} has several images of one name that {self.path} names")
        return np.array(rows, np.int64)


def without_end(name: str) -> str:
    """Without folders and without the end that says how an image is encoded."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in ENDS else path.name


def add_arguments(parser: argparse.ArgumentParser, *, draws: bool = False) -> None:
    """How many labels are learnt from. draws: several numbers of them, each of them several times,
    as `each` and `draws_of` say.
    """
    few = parser.add_mutually_exclusive_group()
    few.add_argument(
        "--subset",
        type=arguments.share_or_file,
        default=1.0,
        metavar="SHARE|FILE",
        help="of each class, 10%%; or a file of image names, one a line",
    )
    what = "images of each class"
    if not draws:
        few.add_argument("--shots", type=arguments.count, metavar="N", help=what)
        return
    few.add_argument(
        "--shots", type=arguments.counts, metavar="N,...", help=f"{what}; each number by itself"
    )
    parser.add_argument(
        "--draws",
        type=arguments.count,
        help="of the few that are learnt from, whose mean and spread are reported "
        f"({DRAWS} with --shots, else 1)",
    )


def each(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options for each number of --shots by itself; what the rest of this module takes."""
    return [argparse.Namespace(**vars(args) | {"shots": n}) for n in args.shots or (None,)]


def draws_of(args: argparse.Namespace) -> int:
    """How often few labels are drawn. UsageError: there is nothing to draw several times."""
    if args.draws and args.draws > 1:
        if isinstance(args.subset, Path):
            raise UsageError(f"--subset {args.subset} is one draw: --draws {args.draws} has none")
        if not args.shots and args.subset == 1:
            raise UsageError(f"--draws {args.draws} of few labels: give --shots 5, or --subset 10%")
    return args.draws or (DRAWS if args.shots else 1)


def amount(args: argparse.Namespace) -> str:
    """Behind the name of a metric, so that what few labels give stays apart; empty for all."""
    if args.shots:
        return f"_{args.shots}_per_class"
    if isinstance(args.subset, Path):
        return f"_of_{args.subset.stem}"
    return f"_of_{100 * args.subset:g}%" if args.subset < 1 else ""


def subset_record(args: argparse.Namespace) -> float | dict[str, Any]:
    """For a protocol: the share, or which list."""
    if not isinstance(args.subset, Path):
        return args.subset
    return Listed.read(args.subset).record()


def few(
    labels: Tensor,
    args: argparse.Namespace,
    *,
    seed: int,
    keys: Callable[[], Sequence[str]] | None = None,
) -> Tensor:
    """(n,) booleans: the rows that are learnt from, as the options say.

    A smaller share or number of the same seed is part of a larger one. keys: of the rows, for a
    file of names. UsageError: a file where there are none, or more shots than any class has images.
    """
    if args.shots:
        images = labels.unique(return_counts=True)[1]
        if len(images) and args.shots > images.max():
            raise UsageError(f"--shots {args.shots}: the largest class has {images.max()} images")
        return _of_each(labels, seed, lambda rows: min(args.shots, rows))
    if isinstance(args.subset, Path):
        if keys is None:
            raise UsageError(f"--subset {args.subset}: it takes a share here, such as 10%")
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        named = Listed.read(args.subset).rows(keys(), "the labelled training images")
        chosen[torch.from_numpy(named)] = True
        return chosen.to(labels.device)
    return drawn(labels, args.subset, seed=seed)


def drawn(labels: Tensor, share: float, *, seed: int, leaving: int = 0) -> Tensor:
    """(n,) booleans: that share of each class, rounded, one at least, all but `leaving` at most.

    A smaller share of the same seed is part of a larger one.
    """
    return _of_each(labels, seed, lambda rows: min(max(1, int(share * rows + 0.5)), rows - leaving))


def _of_each(labels: Tensor, seed: int, count: Callable[[int], int]) -> Tensor:
    """(n,) booleans: of each class as many as `count` says of the number of its rows."""
    labels, where = labels.cpu(), labels.device  # a draw is the same on every device
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    for label in labels.unique().tolist():
        rows = order[labels[order] == label]
        chosen[rows[: count(len(rows))]] = True
    return chosen.to(where)

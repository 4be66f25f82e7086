"""Rows that are held out or learnt from alone: the same for all sizes, methods and ranks."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from poa_ds.system import arguments

HELD_OUT = 0.1  # of each class, to choose a setting by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How many labels are learnt from."""
    few = parser.add_mutually_exclusive_group()
    few.add_argument(
        "--subset", type=arguments.share, default=1.0, metavar="SHARE", help="of each class, 10%%"
    )
    few.add_argument("--shots", type=arguments.count, metavar="N", help="images of each class")


def amount(args: argparse.Namespace) -> str:
    """Behind the name of a metric, so that what few labels give stays apart; empty for all."""
    if args.shots:
        return f"_{args.shots}_per_class"
    return f"_of_{100 * args.subset:g}%" if args.subset < 1 else ""


def few(labels: Tensor, args: argparse.Namespace, *, seed: int) -> Tensor:
    """(n,) booleans: the rows that are learnt from, as the options say.

    A smaller share or number of the same seed is part of a larger one.
    """
    if args.shots:
        return _of_each(labels, seed, lambda rows: min(args.shots, rows))
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

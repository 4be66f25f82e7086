"""Runs as they are compared: what each evaluation found, and what the run had cost by then."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from poa_ds.bench import cost
from poa_ds.evaluate import results, right
from poa_ds.evaluate.right import Right
from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder

By = Literal["images", "steps", "seconds", "flops"]
BY: tuple[By, ...] = ("images", "steps", "seconds", "flops")


@dataclass(frozen=True)
class Point:
    """One evaluation. cost: None where it is not known. knn: size -> percent top-1."""

    step: int
    cost: Mapping[By, float | None]
    knn: Mapping[str, float]
    protocol: Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """One run. random: size -> percent with random weights. pixels: of raw pixels. teacher: the
    frozen one it learned from, "" where there is none.
    """

    name: str
    folder: Path
    k: int
    points: Sequence[Point]
    random: Mapping[str, float]
    pixels: float | None
    teacher: str = ""

    def right(self, point: Point) -> Right:
        """Size -> which queries it got right at that evaluation, where that was kept."""
        return right.at(RunFolder(self.folder).right, point.step, self.k, point.protocol)

    def within(self, by: By, most: float) -> Point | None:
        """Its last evaluation that has cost no more."""
        fitting = [p for p in self.points if p.cost[by] is not None and p.cost[by] <= most]
        return fitting[-1] if fitting else None


def read(folders: Sequence[Path], k: int | None) -> tuple[list[Compared], int]:
    """(the runs, the k of their accuracies: the first one's report_k where none is given)."""
    for folder in folders:
        if not RunFolder(folder).recipe.is_file():
            raise UserError(f"{folder} is no run: it has no {RunFolder(folder).recipe.name}")
    places = [folder.resolve() for folder in folders]
    if twice := [f for f, place in zip(folders, places, strict=True) if places.count(place) > 1]:
        raise UsageError(f"{twice[0]} is given twice: a run is not compared with itself")
    k = k or load.kept_recipe(RunFolder(folders[0]).recipe).evaluation.report_k
    names = [folder.absolute().name for folder in folders]
    if len({*names}) < len(names):  # runs of one name are called by their paths
        names = [str(folder) for folder in folders]
    return [_run(folder, name, k) for folder, name in zip(folders, names, strict=True)], k


def _run(folder: Path, name: str, k: int) -> Compared:
    files = RunFolder(folder)
    recipe, rows = load.kept_recipe(files.recipe), results.read(files.knn)
    every = sorted({each for row in rows for by_k in row.knn.values() for each in by_k})
    rows = [row for row in rows if any(k in by_k for by_k in row.knn.values())]
    if not rows:
        there = f"give --k {' or '.join(map(str, every))}" if every else f"poa-ds eval knn {folder}"
        raise UserError(f"{folder} has no k-NN for k = {k}: {there}")
    seconds, flops = cost.seconds(files.metrics), _flops(recipe)
    points: dict[int, Point] = {}
    random: dict[str, float] = {}
    pixels = None
    for row in rows:
        known = points.get(row.step)
        if known and known.protocol != row.protocol:
            known = None  # measured anew in another way: the later one counts
        knn = {size: by_k[k] for size, by_k in row.knn.items() if k in by_k}
        paid: dict[By, float | None] = {
            "images": row.step * cost.images_per_step(recipe),
            "steps": row.step,
            "seconds": seconds.get(row.step) if row.step else 0.0,
            "flops": None if flops is None else row.step * flops,
        }
        before = known.knn if known else {}
        points[row.step] = Point(row.step, paid, {**before, **knn}, row.protocol)
        random |= {size: by_k[k] for size, by_k in row.random_weights.items() if k in by_k}
        pixels = row.raw_pixels.get(k, pixels)
    taught = recipe.distill.teacher if recipe.objective.method == "seed" else ""
    measured = [points[step] for step in sorted(points)]
    return Compared(name, folder, k, measured, random, pixels, taught)


def _flops(recipe: Recipe) -> float | None:
    """None: its teacher is not there any more, whose forward passes would be counted."""
    try:
        return cost.flops_per_step(recipe)
    except UserError:
        if not recipe.distill.teacher:
            raise
        return None


def chosen(runs: Sequence[Compared], by: By | None) -> list[Point | None]:
    """Of each run the evaluation that is compared: its last one; with `by`, the last one that cost
    no more than the cheapest run in all. None: it has none so early.
    """
    if by is None:
        return [run.points[-1] for run in runs]
    totals = [run.points[-1].cost[by] for run in runs]
    unknown = [run.name for run, total in zip(runs, totals, strict=True) if total is None]
    if unknown:
        raise UsageError(f"--by {by}: what {', '.join(unknown)} has cost is not known")
    return [run.within(by, min(totals)) for run in runs]


def other_protocol(runs: Sequence[Compared], points: Sequence[Point | None]) -> list[str]:
    """Names of the runs that were measured in another way than the first one."""
    known = [(run.name, p) for run, p in zip(runs, points, strict=True) if p is not None]
    return [name for name, point in known if point.protocol != known[0][1].protocol]

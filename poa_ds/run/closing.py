"""The last screen of a run: how it ended, what it gives, where that is, what to do next.

Read from the run's folder alone, at most 24 lines of 80 columns (longer names and paths apart).
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median

from poa_ds.checkpoint import folders
from poa_ds.evaluate import results, right
from poa_ds.evaluate.pareto import cheapest_not_worse, front
from poa_ds.evaluate.results import KnnRow
from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from poa_ds.report import runs
from poa_ds.system import events
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.events import Event
from poa_ds.system.printable import duration, figure, short
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import metrics_file
from poa_ds.track.metrics_file import Row

MOST_SIZES, MOST_NAME = 10, 24  # lines of the table, letters of a column


@dataclass(frozen=True)
class Line:
    """One size. knn: top-1 in percent, its 95 % error; gained: over its own random weights."""

    size: str
    name: str
    parameters: int
    gflops: float
    knn: float | None = None
    error: float | None = None
    gained: float | None = None


def show(screen: Callable[[Path], str], folder: Path, *, to: Callable[[str], None] = tell) -> None:
    """Print it; where a file of the run cannot be read, that: it changes no exit status."""
    try:
        to(screen(folder))
    except (UserError, OSError) as error:
        say(f"warning: the closing screen is left out: {error}")


def at_the_end(folder: Path) -> str:
    """Behind the last step: the course of the run, its sizes, three commands."""
    files = RunFolder(folder)
    recipe, rows = load.kept_recipe(files.recipe), results.read(files.knn)
    lines = measured(recipe, rows)
    between = _between(files, recipe, rows, lines)
    best = cheapest_not_worse([(line.knn, line.error) for line in lines], between)
    taken = lines[best if best is not None else -1]
    screen = [course(files), "", *_table(lines, best, recipe)]
    screen += _summary(lines, rows, recipe.evaluation.report_k)
    return "\n".join([*screen, "", *_commands(files, taken)])


def _between(
    files: RunFolder, recipe: Recipe, rows: Sequence[KnnRow], lines: Sequence[Line]
) -> Callable[[int, int], float | None]:
    """Errors of differences, as poa-ds sizes has them."""
    step = rows[-1].step if rows else 0
    newest = results.newest(rows, step)
    kept = right.of_measured(files.right, step, recipe.evaluation.report_k, newest)
    return right.between(kept, [line.size for line in lines])


def at_a_stop(folder: Path) -> str:
    """Behind a stop that was asked for and saved."""
    files = RunFolder(folder)
    return "\n".join([course(files), *_kept(files), *_report(files)])


def after_an_error(folder: Path) -> str:
    """Behind the message of what ended the run: what is saved, and how to go on."""
    files = RunFolder(folder)
    newest = folders.newest(files.checkpoints)
    done = _steps_done(files)
    if newest is None and folders.listed(files.checkpoints):
        return f"after step {done:,}: no checkpoint in {files.checkpoints} is whole"
    if newest is None:
        return f"after step {done:,}: nothing is saved yet; the same command starts anew"
    step = folders.step_of(newest)
    again = f"; steps {step + 1:,} to {done:,} are taken again" if done > step else ""
    return "\n".join(
        [
            f"after step {done:,}: saved is step {step:,}, where the same command continues{again}",
            *_kept(files),
            f"what happened   poa-ds checkpoint inspect {shlex.quote(str(folder))}",
            *_report(files),
        ]
    )


def course(files: RunFolder) -> str:
    """Time of all starts together, its share of evaluations, rate, and what went wrong."""
    rows, happened = _rows(files), events.read(files.events)
    seconds = busy_seconds(rows, happened)
    evaluations = sum(row.get("speed/evaluation_seconds", 0.0) for row in rows)
    rates = [row["speed/images_per_second"] for row in rows if "speed/images_per_second" in row]
    kinds = [event.kind for event in happened]
    parts = [f"time {duration(seconds)}"]
    if seconds and evaluations:
        parts.append(f"{min(100 * evaluations / seconds, 100):.0f} % of it evaluations")
    if rates:
        parts.append(f"{figure(median(rates))} images/s")
    counts = (("restarts", "resume"), ("skipped steps", "skipped"), ("alarms", "alarm"))
    wrong = ", ".join(f"{word} {kinds.count(kind)}" for word, kind in counts)
    return ", ".join(parts) + "\n" + wrong


def busy_seconds(rows: Sequence[Row], happened: Sequence[Event]) -> float:
    """The time in which the run ran: from each start to the last that is known of it."""
    times = [(row["time"], False) for row in rows if "time" in row]
    times += [(event.time, event.kind in ("start", "resume")) for event in happened]
    times.sort()
    pairs = pairwise(times)
    return sum(after - before for (before, _), (after, starts) in pairs if not starts)


def measured(recipe: Recipe, rows: Sequence[KnnRow]) -> list[Line]:
    """Every size, cheapest first, with what the last evaluation says of it."""
    k, found = recipe.evaluation.report_k, []
    accuracies = results.newest(rows, rows[-1].step) if rows else {}
    random = {size: by_k for row in rows for size, by_k in row.random_weights.items()}
    for size in runs.sizes(recipe):
        values, protocol = accuracies.get(size["size"], ({}, {}))
        line = Line(size["size"], size["name"], size["parameters"], size["gflops"])
        if k in values:
            floor = random.get(line.size, {}).get(k)
            line = Line(
                *(line.size, line.name, line.parameters, line.gflops, values[k]),
                error=results.error(values[k], protocol["queries"]["images"]),
                gained=None if floor is None else values[k] - floor,
            )
        found.append(line)
    return sorted(found, key=lambda line: (line.parameters, line.gflops))


def _shown(lines: Sequence[Line], best: int | None) -> list[int]:
    """Named sizes and the front, spread over it where there are too many."""
    kept = {number for number, line in enumerate(lines) if line.name}
    kept = set(_spread(sorted(kept), MOST_SIZES - 2)) | ({best} if best is not None else set())
    rest = front([(line.parameters, line.knn) for line in lines]) or set(range(len(lines)))
    rest = sorted(rest - kept)
    return sorted(kept | set(_spread(rest, MOST_SIZES - len(kept))))


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the first and the last among them."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(i * (len(numbers) - 1) / max(most - 1, 1))] for i in range(most)]


def _table(lines: Sequence[Line], best: int | None, recipe: Recipe) -> list[str]:
    shown = _shown(lines, best)
    name = max(4, *(min(len(lines[n].name), MOST_NAME) for n in shown))
    size = max(4, *(len(lines[n].size) for n in shown))
    knn = f"k-NN (k={recipe.evaluation.report_k})"
    head = (
        f"  {'size':<{size}}  {'name':<{name}}{'parameters':>12}{'GFLOPs':>9}{knn:>17}{'gain':>7}"
    )
    rows = [head]
    for number in shown:
        line = lines[number]
        accuracy = "-" if line.knn is None else f"{line.knn:.1f} ± {line.error:.1f} %"
        gained = "-" if line.gained is None else f"{line.gained:+.1f}"
        title = line.name if len(line.name) <= name else line.name[: name - 1] + "…"
        rows.append(
            f"{'*' if number == best else ' '} {line.size:<{size}}  {title:<{name}}"
            f"{short(line.parameters):>12}{line.gflops:>9.3g}{accuracy:>17}{gained:>7}"
        )
    return rows


def _summary(lines: Sequence[Line], rows: Sequence[KnnRow], k: int) -> list[str]:
    """Least and most of all sizes, the floors, and what the star means."""
    known = [line for line in lines if line.knn is not None]
    if not known:
        return []
    low, high = (pick(known, key=lambda line: line.knn) for pick in (min, max))
    least, most = (f"{line.knn:.1f} % ({line.size})" for line in (low, high))
    gains = [line.gained for line in known if line.gained is not None]
    floors = [line.knn - line.gained for line in known if line.gained is not None]
    said = [f"random weights {min(floors):.1f} to {max(floors):.1f} %"] if gains else []
    pixels = [row.raw_pixels[k] for row in rows if k in row.raw_pixels]
    if pixels:
        said.append(f"raw pixels {pixels[-1]:.1f} %")
    return [
        f"{len(known)} sizes reach {least} to {most}",
        *([f"floors: {', '.join(said)}"] if said else []),
        "* the cheapest that is not shown to be worse than the highest (95 % error)",
    ]


def _commands(files: RunFolder, taken: Line) -> list[str]:
    run, size = shlex.quote(str(files.path)), taken.size
    most = f"{ceil(taken.parameters / 1e6)}M" if taken.parameters > 1e7 else ""
    most = most or f"{ceil(taken.parameters / 1e3)}K"
    model = shlex.quote(str(files.path / size))
    return [
        *_report(files),
        f"choose a size   poa-ds sizes {run} --max-params {most}",
        f"take it out     poa-ds extract {run} --size {size} --out {model}",
    ]


def _report(files: RunFolder) -> list[str]:
    if files.report.is_file():
        return [f"report          {files.report}"]
    run, page = (shlex.quote(str(path)) for path in (files.path, files.report))
    return [f"report          poa-ds report {run} --out {page}"]


def _kept(files: RunFolder) -> list[str]:
    newest = folders.newest(files.checkpoints)
    return [f"checkpoint      {newest}"] if newest else []


def _rows(files: RunFolder) -> list[Row]:
    return metrics_file.read_rows(files.metrics) if files.metrics.is_file() else []


def _steps_done(files: RunFolder) -> int:
    """As far as the run's files tell: a row comes every `log_every` steps alone."""
    rows, happened = _rows(files), events.read(files.events)
    return max([row["step"] for row in rows] + [event.step for event in happened], default=0)

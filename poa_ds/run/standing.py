"""Four lines about where a run stands, as text.

photos  step 250/500  50 %  ━━━━━━━━━─────────  0.48 steps/s  12 min left  (evaluations 2 min)
loss 7.12 (-0.31 in 50 steps)   lr 0.0015   grad 2.3 / 0.6   skipped 0   health ok
k-NN @ 250   15 sizes 69.8 to 75.4 ±3.1 %   gained 8.9 to 16.4   small 71.5   base 73.4
31 img/s   data wait 2 %   memory 1.9 GiB host   checkpoint 200 saved   runs/photos/report.html
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from poa_ds.evaluate import results
from poa_ds.evaluate.results import KnnRow
from poa_ds.system.printable import duration, figure, printable
from poa_ds.system.terminal import fitting, width
from poa_ds.track.metrics_file import Row

LONGEST_NAME, SHORTEST_BAR, LONGEST_BAR = 24, 6, 30
RED, PLAIN = "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True)
class Standing:
    """What the lines tell. row: the newest one, with those before it; seconds_left: all of it.

    knn: the newest evaluation; judged_from: the first step at which signs of a collapse count.
    """

    name: str
    step: int
    steps: int
    row: Row = field(default_factory=dict)
    earlier: Row = field(default_factory=dict)
    seconds_left: float | None = None
    evaluation_seconds_left: float = 0.0
    knn: KnnRow | None = None
    report_k: int = 0
    sizes: Mapping[str, str] = field(default_factory=dict)  # the recipe's names
    saved: int | None = None  # step of the newest checkpoint
    judged_from: int = 0
    report: str = ""  # where the page is


def lines(standing: Standing, columns: int, *, coloured: bool, ascii_only: bool) -> list[str]:
    """The four lines, each at most so wide: what does not fit is left out from the right."""
    found = [
        _course(standing, columns, ascii_only),
        _joined(_losses(standing, coloured), columns),
        _joined(_accuracies(standing), columns),
        _joined(_speed(standing), columns),
    ]
    return [line.replace("±", "+-") for line in found] if ascii_only else found


def _joined(items: Sequence[str], columns: int, between: str = "   ") -> str:
    """The first items, as many as fit."""
    shown = ""
    for item in items:
        longer = f"{shown}{between}{item}" if shown else item
        if width(longer) > columns:
            break
        shown = longer
    return shown or fitting(items[0], columns)


def _course(at: Standing, columns: int, ascii_only: bool) -> str:
    """The bar takes the room that is there; without room for it, it goes first."""
    name = fitting(printable(at.name), LONGEST_NAME)
    share = at.step / at.steps
    head = [name, f"step {at.step:,}/{at.steps:,}", f"{100 * share:.0f} %"]
    tail = []
    if step_ms := at.row.get("speed/step_ms"):
        tail.append(f"{figure(1000 / step_ms)} steps/s")
    if at.seconds_left is not None:
        tail.append(f"{duration(at.seconds_left)} left")
        if at.evaluation_seconds_left:
            tail.append(f"(evaluations {duration(at.evaluation_seconds_left)})")
    room = columns - width("  ".join([*head, *tail])) - 2
    if room < SHORTEST_BAR and len(tail) == 3:
        room += width(tail.pop()) + 2
    if room < SHORTEST_BAR:
        return _joined([*head, *tail], columns, "  ")
    full, empty = "=-" if ascii_only else "━─"
    length = min(room, LONGEST_BAR)
    done = int(share * length)
    return "  ".join([*head, full * done + empty * (length - done), *tail])


def _losses(at: Standing, coloured: bool) -> list[str]:
    row = at.row
    if "loss/total" not in row:
        return ["loss: after the next row of metrics"]
    change = ""
    if "loss/total" in at.earlier:
        steps = row["step"] - at.earlier["step"]
        change = f" ({row['loss/total'] - at.earlier['loss/total']:+.2f} in {steps:,} steps)"
    norms = [x for name, x in row.items() if name.startswith("gradient_norm/")]
    return [
        f"loss {row['loss/total']:.2f}{change}",
        f"lr {row['schedule/lr']:.3g}",
        *([f"grad {' / '.join(f'{x:.1f}' for x in norms)}"] if norms else []),
        f"skipped {row['skipped_total']:,.0f}",
        _health(at, coloured),
    ]


def _health(at: Standing, coloured: bool) -> str:
    count = int(at.row.get("health/alarm", 0))
    if not count:
        judged = at.step >= at.judged_from
        return "health ok" if judged else f"health: from step {at.judged_from:,}"
    text = f"health: {count} alarm{'s' * (count > 1)}"
    return f"{RED}{text}{PLAIN}" if coloured else text


def _accuracies(at: Standing) -> list[str]:
    if at.knn is None:
        return ["k-NN: not measured yet"]
    found = {size: by_k[at.report_k] for size, by_k in at.knn.knn.items() if at.report_k in by_k}
    if not found:
        return [f"k-NN @ {at.knn.step:,}: no size has finite features"]
    queries = at.knn.protocol["queries"]["images"]
    error = max(results.error(x, queries) for x in found.values())
    count = f"{len(found)} size{'s' * (len(found) > 1)}"
    items = [f"k-NN @ {at.knn.step:,}", f"{count} {_span(found.values())} ±{error:.1f} %"]
    floors = at.knn.random_weights
    gains = [
        x - floors[s][at.report_k] for s, x in found.items() if at.report_k in floors.get(s, {})
    ]
    if gains and at.knn.step:
        items.append(f"gained {_span(gains)}")
    return items + [f"{n} {found[size]:.1f}" for n, size in at.sizes.items() if size in found]


def _span(values: Collection[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _speed(at: Standing) -> list[str]:
    row, items = at.row, []
    if "speed/images_per_second" in row:
        wait = 100 * row["speed/data_wait_ms"] / row["speed/step_ms"]
        items += [f"{figure(row['speed/images_per_second'])} img/s", f"data wait {wait:.0f} %"]
    memory = [
        f"{row[f'memory/{w}_gib']:.1f} GiB {w}"
        for w in ("device", "host")
        if f"memory/{w}_gib" in row
    ]
    if memory:
        items.append(f"memory {', '.join(memory)}")
    items.append("no checkpoint yet" if at.saved is None else f"checkpoint {at.saved:,} saved")
    return [*items, *([printable(at.report)] if at.report else [])]

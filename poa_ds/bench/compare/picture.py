"""The picture of a comparison: a panel per size, in each the k-NN of every run over its cost."""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from poa_ds.bench.compare.runs import By, Compared
from poa_ds.evaluate import results
from poa_ds.evaluate.neighbours import subset

MOST_PANELS = 12
MARKERS = "osD^vP*X"
LABELS = {"images": "images seen", "steps": "step", "seconds": "time of the steps (s)"}
TFLOP = 1e12
PIXELS_COLOUR, DASHES = "#b03060", (0, (6, 3))


def curves(runs: Sequence[Compared], sizes: Sequence[str], *, by: By, title: str) -> Figure:
    """Percent top-1 with the 95 % error of its queries; at least one size."""
    shown = _chosen(runs, sizes)
    columns = min(4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.3 * columns + 2.2, 2.7 * lines + 1), dpi=120)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    colours = [colormaps["viridis"](0.85 * i / max(len(runs) - 1, 1)) for i in range(len(runs))]
    styles = [(c, MARKERS[i % len(MARKERS)]) for i, c in enumerate(colours)]
    for panel, size in zip(panels, shown, strict=False):
        _panel(panel, runs, size, by, styles)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    figure.supxlabel(LABELS.get(by, "counted TFLOP"), size=10)
    figure.supylabel("top-1 (%)", size=10)
    handles = [
        Line2D([], [], color=colour, marker=marker, label=run.name)
        for run, (colour, marker) in zip(runs, styles, strict=True)
    ]
    if any(run.pixels is not None for run in runs):
        handles.append(Line2D([], [], color=PIXELS_COLOUR, ls=DASHES, label="raw pixels"))
    figure.legend(handles=handles, loc="outside right center")
    figure.suptitle(title, size=12)
    return figure


def _chosen(runs: Sequence[Compared], sizes: Sequence[str]) -> list[str]:
    """MOST_PANELS of the sizes at most: first those that most runs have, evenly among equals."""
    having = {size: sum(size in run.points[-1].knn for run in runs) for size in sizes}
    found: set[str] = set()
    for count in sorted(set(having.values()), reverse=True):
        equal, free = [s for s in sizes if having[s] == count], MOST_PANELS - len(found)
        found |= {equal[i] for i in subset(len(equal), free)} if free else set()
    return [size for size in sizes if size in found]


def _panel(
    axes: Axes, runs: Sequence[Compared], size: str, by: By, styles: Sequence[tuple]
) -> None:
    for run, (colour, marker) in zip(runs, styles, strict=True):
        points = [p for p in run.points if size in p.knn and p.cost[by] is not None]
        if not points:
            continue
        x = [p.cost[by] / (TFLOP if by == "flops" else 1) for p in points]
        y = [p.knn[size] for p in points]
        error = [results.error(p.knn[size], p.protocol["queries"]["images"]) for p in points]
        axes.errorbar(x, y, error, color=colour, marker=marker, ms=4, lw=1.4, capsize=2)
    known = [run.pixels for run in runs if run.pixels is not None]
    if known:
        axes.axhline(known[0], color=PIXELS_COLOUR, lw=1, ls=DASHES)
    axes.set_title(size, size=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelbottom=True)

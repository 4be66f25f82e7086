"""Pictures of a run: the k-NN of every size over the steps, and over width and depth.

Figures without pyplot, so that threads and other users of matplotlib are left alone. Colours are
steps of viridis (safe for colour-blind readers, and ordered in grey as well).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError
from poa_ds.track.metrics_file import Floors, Row, knn_curves

Curves = Mapping[Subnet, Sequence[tuple[int, float]]]
Alone = Mapping[Subnet, Sequence[float]]  # percent, of one run each

LINE_STYLES = ("solid", (0, (5, 1.5)), (0, (3, 1.5, 1, 1.5)), (0, (1, 1.2)))
MOST_WIDTHS = 6  # more sizes than these do not fit into one panel
MOST_LABELS = 40  # of depths; more get no numbers in their cells
MOST_ROWS = 24  # of the comparison with the floors
PIXELS_COLOUR, RANDOM_COLOUR, ALONE_COLOUR = "#b03060", "#8a8a8a", "#d55e00"


def heat_map(values: Mapping[Subnet, float], *, title: str) -> Figure:
    """Accuracy in percent over width (right) and depth (up); sizes without a value stay empty."""
    widths = sorted({size.width for size in values})
    by_blocks = sorted(values, key=lambda size: (sum(size.stages), size.stages))
    depths = list(dict.fromkeys(size.depth for size in by_blocks))
    names = list(dict.fromkeys(size.depth_text for size in by_blocks))
    every = -(-len(depths) // MOST_LABELS)
    grid = np.full((len(depths), len(widths)), np.nan)
    for size, value in values.items():
        grid[depths.index(size.depth), widths.index(size.width)] = value
    figure = Figure(
        figsize=(max(5, 2.6 + 0.72 * len(widths)), 1.9 + 0.42 * min(len(depths), MOST_LABELS)),
        dpi=120,
    )
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.set_facecolor("#e4e4e4")
    image = axes.imshow(np.ma.masked_invalid(grid), origin="lower", aspect="auto", cmap="viridis")
    low, high = image.get_clim()
    for (row, column), value in np.ndenumerate(grid) if every == 1 else ():
        dark = np.isnan(value) or value > low + 0.6 * (high - low)
        text = "–" if np.isnan(value) else f"{value:.1f}"
        axes.text(
            column, row, text, ha="center", va="center", size=9, color="black" if dark else "white"
        )
    axes.set_xticks(range(len(widths)), map(str, widths))
    axes.set_yticks(range(0, len(depths), every), names[::every])
    axes.set_xlabel("width (channels)")
    axes.set_ylabel("depth (blocks)")
    axes.set_title(title, size=11)
    figure.colorbar(image, ax=axes, label="top-1 (%)", pad=0.02)
    return figure


def curves(
    rows: Iterable[Row],
    *,
    floors: Floors | None = None,
    alone: Alone | None = None,
    title: str = "",
) -> Figure:
    """k-NN top-1 of every size over the steps, with both floors.

    rows: of metrics.jsonl. floors: in place of those among the rows. Many sizes get one panel per
    width; few get one panel, and beside it each size against its own random weights, and against
    `alone`, what runs of that size alone came to. UserError: there is no k-NN among the rows.
    """
    found, logged = knn_curves(rows)
    if not found:
        raise UserError("no k-NN value has been logged yet, so there are no curves to draw")
    floors = floors or logged
    widths, depths = ({getattr(size, side) for size in found} for side in ("width", "depth"))
    few = len(widths) <= MOST_WIDTHS and len(depths) <= len(LINE_STYLES)
    figure = _one_panel(found, floors, alone or {}) if few else _panel_per_width(found, floors)
    figure.suptitle(title or "k-NN top-1 of every size", size=13)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    FigureCanvasAgg(figure).print_png(str(path))


def pixels(figure: Figure) -> np.ndarray:
    """The picture as (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shades(keys: Iterable[int]) -> dict[int, tuple[float, ...]]:
    """A colour for each number, the smallest darkest; not up to viridis' pale yellow."""
    ordered = sorted(set(keys))
    places = np.linspace(0.0, 0.85, len(ordered)) if len(ordered) > 1 else [0.3]
    return {key: colormaps["viridis"](place) for key, place in zip(ordered, places, strict=True)}


def _one_panel(found: Curves, floors: Floors, alone: Alone) -> Figure:
    compared = 0 < len(floors.random) and len(found) <= MOST_ROWS
    figure = Figure(figsize=(12.5 if compared else 7.5, 6), dpi=120)
    figure.set_layout_engine("constrained")
    left = figure.add_gridspec(1, 2 if compared else 1)
    axes, below = _axes_with_a_break(figure, left[0], found, floors)
    colours = _shades(size.width for size in found)
    depths = sorted({size.depth for size in found})
    styles = dict(zip(depths, LINE_STYLES, strict=False))
    for size, points in found.items():
        style = {"color": colours[size.width], "linestyle": styles[size.depth]}
        _line(axes, points, lw=1.6, marker="o", ms=3.5, **style)
    _draw_random(axes, floors)
    _draw_pixels(below, floors)
    handles = [Line2D([], [], color=c, lw=3, label=f"width {w}") for w, c in colours.items()]
    named = {size.depth: f"depth {size.depth_text}" for size in found}
    handles += [Line2D([], [], color="black", ls=styles[d], label=named[d]) for d in depths]
    drop = -0.16 if below is axes else -1.0  # in heights of the lower panel
    below.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, drop), ncols=4)
    if compared:
        _compare(figure.add_subplot(left[1]), found, floors, colours, alone)
    return figure


def _axes_with_a_break(
    figure: Figure, place: SubplotSpec, found: Curves, floors: Floors
) -> tuple[Axes, Axes]:
    """(axes of the curves, axes of the raw-pixel floor): two where the floor lies far below."""
    heights = [value for points in found.values() for _, value in points]
    heights += floors.random.values()
    low, high = min(heights), max(heights)
    if floors.pixels is None or floors.pixels > low - 0.5 * (high - low):
        axes = figure.add_subplot(place)
        _style(axes)
        return axes, axes
    grid = place.subgridspec(2, 1, height_ratios=(5, 0.8), hspace=0.05)
    axes = figure.add_subplot(grid[0])
    below = figure.add_subplot(grid[1], sharex=axes)
    _style(axes)
    _style(below)
    axes.set_xlabel("")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(bottom=False, labelbottom=False)
    below.set_ylim(floors.pixels - 2, floors.pixels + 2)
    below.set_yticks([round(floors.pixels)])
    below.set_ylabel("")
    cut = {"marker": [(-1, -0.5), (1, 0.5)], "ms": 9, "color": "black", "clip_on": False}
    axes.plot(0, 0, transform=axes.transAxes, **cut)
    below.plot(0, 1, transform=below.transAxes, **cut)
    return axes, below


def _panel_per_width(found: Curves, floors: Floors) -> Figure:
    widths = sorted({size.width for size in found})
    shades = _shades(size.depth for size in found)
    columns = min(4, len(widths))
    rows = -(-len(widths) // columns)
    figure = Figure(figsize=(3.3 * columns + 1, 2.7 * rows + 1), dpi=120)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, width in zip(panels, widths, strict=False):
        for size, points in found.items():
            if size.width == width:
                _line(panel, points, lw=1.1, color=shades[size.depth])
        panel.set_title(f"width {width}", size=10)
        first = panel is panels[0]
        _draw_random(panel, floors, labelled=first)
        _draw_pixels(panel, floors, labelled=first)
        _style(panel, labelled=False)
        panel.tick_params(labelbottom=True)
    for panel in panels[len(widths) :]:
        panel.set_axis_off()
    figure.supxlabel("step", size=10)
    figure.supylabel("top-1 (%)", size=10)
    named = {size.depth: f"depth {size.depth_text}" for size in found}
    every = -(-len(shades) // MOST_LABELS)
    handles = [Line2D([], [], color=shades[d], lw=3, label=named[d]) for d in [*shades][::every]]
    figure.legend(handles=handles[::-1], loc="outside right center")
    return figure


def _line(axes: Axes, points: Sequence[tuple[int, float]], **style: object) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, **style)


def _draw_random(axes: Axes, floors: Floors, *, labelled: bool = True) -> None:
    if not floors.random:
        return
    low, high = min(floors.random.values()), max(floors.random.values())
    axes.axhspan(low, high, color=RANDOM_COLOUR, alpha=0.3, lw=1)
    if labelled:
        _note(axes, "random weights, all sizes", high, "#5c5c5c")


def _draw_pixels(axes: Axes, floors: Floors, *, labelled: bool = True) -> None:
    if floors.pixels is None:
        return
    axes.axhline(floors.pixels, color=PIXELS_COLOUR, lw=1.5, ls=(0, (6, 3)))
    if labelled:
        text = f"raw pixels {floors.pixels:.1f}"
        # clear of the band of random weights, which lies above in most runs
        _note(axes, text, floors.pixels, PIXELS_COLOUR, above=not floors.random)
        axes.margins(y=0.1)


def _note(axes: Axes, text: str, y: float, colour: str, *, above: bool = True) -> None:
    axes.annotate(
        text, (1.0, y), xycoords=("axes fraction", "data"), xytext=(-4, 2 if above else -3),
        textcoords="offset points", ha="right", va="bottom" if above else "top",
        size=9, color=colour,
    )  # fmt: skip


def _style(axes: Axes, *, labelled: bool = True) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5 if labelled else 3, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    if labelled:
        axes.set_xlabel("step")
        axes.set_ylabel("top-1 (%)")


def _short(step: float, _: object) -> str:
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:,.0f}"


def _compare(
    axes: Axes, found: Curves, floors: Floors, colours: Mapping[int, tuple], alone: Alone
) -> None:
    """Each size's last value against its own random weights and against the size alone."""
    for row, (size, points) in enumerate(found.items()):
        for value in alone.get(size, ()):
            axes.plot(value, row, "D", mfc="none", mec=ALONE_COLOUR, ms=6, zorder=3)
        last, random = points[-1][1], floors.random.get(size)
        if random is not None:
            axes.plot([random, last], [row, row], color=RANDOM_COLOUR, lw=1.5, zorder=1)
            axes.plot(random, row, "o", mfc="white", mec=RANDOM_COLOUR, ms=6)
            axes.annotate(
                f"{last - random:+.1f}", ((last + random) / 2, row), xytext=(0, 2),
                textcoords="offset points", ha="center", size=8,
            )  # fmt: skip
        axes.plot(last, row, "o", color=colours[size.width], ms=7)
    axes.set_yticks(range(len(found)), map(str, found), size=9)
    if floors.pixels is not None:
        axes.axvline(floors.pixels, color=PIXELS_COLOUR, lw=1.5, ls=(0, (6, 3)))
    axes.margins(x=0.1)
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("top-1 (%)")
    axes.set_ylabel("size (width x depth)")
    against = "its random weights" + (" and itself trained alone" if alone else "")
    axes.set_title(f"last evaluation of each size against {against}", size=10)
    handles = [
        Line2D([], [], marker="o", ls="", mfc="white", mec=RANDOM_COLOUR, label="random weights"),
        Line2D([], [], marker="o", ls="", color="black", label="trained (gain in points)"),
        Line2D([], [], color=PIXELS_COLOUR, ls=(0, (6, 3)), label="raw pixels"),
    ]
    if alone:
        look = {"mfc": "none", "mec": ALONE_COLOUR, "ms": 6}
        text = "the size trained alone, a run each"
        handles.append(Line2D([], [], marker="D", ls="", label=text, **look))
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)

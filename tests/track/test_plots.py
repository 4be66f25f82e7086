"""Pictures: the right number in the right place, sizes told apart, no text over another."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError
from poa_ds.track import plots
from poa_ds.track.metrics_file import Floors, Row, knn_values

FEW = [Subnet(width, depth) for width in (32, 48, 64, 80, 96) for depth in (2, 3, 4)]
MANY = [Subnet(width, depth) for width in range(384, 1025, 64) for depth in range(12, 25)]


def percent(size: Subnet, step: int) -> float:
    return 40 + size.width / 20 + size.depth + step / 10


def rows(sizes: list[Subnet], floors: Floors | None = None) -> list[Row]:
    floors = floors or Floors(27.0, {size: percent(size, 0) for size in sizes})
    return [
        {
            "step": step,
            "time": 0.0,
            **knn_values({size: {20: percent(size, step)} for size in sizes}, floors, report_k=20),
        }
        for step in (0, 50, 100)
    ]


def test_the_heat_map_shows_each_value_over_its_width_and_depth() -> None:
    values = {Subnet(32, 2): 50.0, Subnet(64, 2): 60.0, Subnet(64, 4): 71.25}
    axes = plots.heat_map(values, title="k-NN").axes[0]
    places = {text.get_position(): text.get_text() for text in axes.texts}
    assert places == {(0, 0): "50.0", (1, 0): "60.0", (0, 1): "–", (1, 1): "71.2"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32", "64"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "4"]


def test_a_size_whose_features_were_not_finite_stays_empty() -> None:
    axes = plots.heat_map({Subnet(32, 2): float("nan"), Subnet(32, 3): 9.0}, title="").axes[0]
    assert [text.get_text() for text in axes.texts] == ["–", "9.0"]


def test_few_sizes_are_told_apart_by_colour_and_style_and_keep_their_values() -> None:
    axes = plots.curves(rows(FEW)).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    looks = {(to_hex(line.get_color()), str(line._dash_pattern)) for line in lines}
    assert len(lines) == len(looks) == 15
    assert list(lines[0].get_ydata()) == [percent(FEW[0], step) for step in (0, 50, 100)]


def test_both_floors_are_drawn_and_named() -> None:
    figure = plots.curves(rows(FEW))
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert "raw pixels 27.0" in texts and "random weights, all sizes" in texts
    levels = [set(line.get_ydata()) for axes in figure.axes for line in axes.lines]
    assert {27.0} in levels
    band = figure.axes[0].patches[0]
    assert band.get_y() == percent(FEW[0], 0)
    assert band.get_y() + band.get_height() == percent(FEW[-1], 0)


def test_the_comparison_states_the_gain_over_each_size_s_own_random_weights() -> None:
    texts = [text.get_text() for text in plots.curves(rows(FEW)).axes[-1].texts]
    assert texts == ["+10.0"] * 15


def test_what_a_size_came_to_alone_stands_in_its_row() -> None:
    size = Subnet(64, 3)
    axes = plots.curves(rows(FEW), alone={size: (61.0, 63.5)}).axes[-1]
    rings = [line for line in axes.lines if line.get_marker() == "D"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in rings] == [
        (61.0, FEW.index(size)),
        (63.5, FEW.index(size)),
    ]
    assert "the size trained alone, a run each" in [t.get_text() for t in axes.legend_.texts]


def test_given_floors_replace_the_logged_ones() -> None:
    figure = plots.curves(rows(FEW), floors=Floors(pixels=44.0))
    assert "raw pixels 44.0" in [text.get_text() for axes in figure.axes for text in axes.texts]
    assert len(figure.axes) in (1, 2)  # no comparison without random weights


def test_143_sizes_get_one_panel_per_width_with_thirteen_shades() -> None:
    figure = plots.curves(rows(MANY))
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels][::10] == ["width 384", "width 1024"]
    for axes in panels:
        colours = {to_hex(line.get_color()) for line in axes.lines if len(line.get_xdata()) == 3}
        assert len(colours) == 13
    assert "raw pixels 27.0" in [text.get_text() for text in panels[0].texts]


@pytest.mark.parametrize("sizes", [FEW, MANY, FEW[:1]], ids=["few", "many", "one"])
def test_no_text_covers_another(sizes: list[Subnet]) -> None:
    figure = plots.curves(rows(sizes), title="k-NN top-1 (k = 20)")
    plots.pixels(figure)
    labels = [figure._suptitle, *(text for axes in figure.axes for text in axes.texts)]
    for axes in figure.axes:
        labels += [axes.title, axes.xaxis.label, axes.yaxis.label]
        labels += [*ticks(axes.xaxis), *ticks(axes.yaxis)]
    boxes = [label.get_window_extent() for label in labels if shown(label)]
    boxes += [axes.get_legend().get_window_extent() for axes in figure.axes if axes.get_legend()]
    assert not [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]


def ticks(axis: Axis) -> list[Text]:
    """The labels that are drawn: those of ticks inside the view."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def shown(label: Text) -> bool:
    axes = label.axes
    inside = axes is None or axes.axison
    return bool(label.get_text()) and label.get_visible() and inside


def test_pictures_are_saved_as_png_and_handed_out_as_rgb(tmp_path: Path) -> None:
    figure = plots.heat_map({size: percent(size, 0) for size in FEW}, title="k-NN")
    plots.save(figure, tmp_path / "heat.png")
    array = plots.pixels(figure)
    assert array.dtype == np.uint8 and array.shape[2] == 3
    with Image.open(tmp_path / "heat.png") as image:
        assert image.size == array.shape[1::-1]
        assert np.array_equal(np.asarray(image.convert("RGB")), array)


def test_a_run_without_evaluation_is_named_as_such() -> None:
    with pytest.raises(UserError, match="no k-NN value"):
        plots.curves([{"step": 0, "time": 0.0, "loss": 1.0}])

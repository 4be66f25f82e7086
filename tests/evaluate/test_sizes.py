"""The table of sizes: costs, accuracies, budgets and the three forms of output."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from poa_ds import cli
from poa_ds.evaluate import results, sizes
from poa_ds.evaluate.features import random_weights
from poa_ds.evaluate.latency.rows import LatencyRow, Place, processor
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.right import RightRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.system.printable import short
from tests.evaluate.test_knn import tiny
from tests.export.test_extract import run_folder

PROTOCOL = {
    "bank": {"images": 40, "of": 40},
    "queries": {"images": 25_000, "of": 25_000},
    "crop": 32,
    "resize": 32,
    "precision": "fp32",
}


def measured(
    folder: Path,
    knn: dict[Subnet, float],
    *,
    step: int = 7,
    images: int = 40,
    queries: int = 25_000,
) -> None:
    protocol = PROTOCOL | {"bank": {"images": images, "of": 40}}
    protocol["queries"] = {"images": queries, "of": 25_000}
    row = KnnRow.of(step, protocol, {s: {20: x} for s, x in knn.items()})
    results.append(folder / "knn.jsonl", row)


def test_query_by_query_the_best_is_told_from_worse_ones_that_errors_of_their_own_hide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small size gets no query right that the large one does not, and 20 of 1,000 less."""
    run_folder(tmp_path)
    small, large = Subnet(32, 2), Subnet(48, 3)
    measured(tmp_path, {small: 68.0, large: 70.0}, queries=1000)
    best = [row["size"] for row in found(capsys, tmp_path) if row["best"]]
    assert best == ["32x2"]  # 2 points, where one accuracy alone has an error of 2.8
    protocol = results.read(tmp_path / "knn.jsonl")[0].protocol
    bits = {str(s): np.arange(1000) < n for s, n in ((small, 680), (large, 700))}
    results.append(tmp_path / "knn_right.jsonl", RightRow.of(7, protocol, 20, bits))
    best = [row["size"] for row in found(capsys, tmp_path) if row["best"]]
    assert best == ["48x3"]  # 2.0 with an error of 0.9
    assert cli.main(["sizes", str(tmp_path)]) == 0
    assert "of their difference, query by query: not shown" in capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict]:
    assert cli.main(["sizes", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_costs_of_a_size_are_those_of_the_network_by_itself() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from poa_ds.export.extract import extract

    recipe = tiny()
    model = random_weights(recipe)
    for row in sizes.rows(model, recipe, {}):
        subnet = model.space.parse(row.size)
        # the mask token is not part of an extracted size
        assert row.parameters == sum(t.numel() for t in extract(model, subnet).values())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32), subnet)
        # the patch projection runs at full width in the elastic network
        patches = 2 * 16 * 3 * 8 * 8 * (48 - subnet.width)
        assert row.gflops * 1e9 == pytest.approx(counter.get_total_flops() - patches)


def test_deep_narrow_sizes_stand_where_their_parameters_put_them() -> None:
    recipe = tiny("backbone.depth={min: 2, max: 6, step: 2}")
    rows = sizes.rows(random_weights(recipe), recipe, {})
    assert [row.size for row in rows] == ["32x2", "32x4", "48x2", "32x6", "48x4", "48x6"]


def test_the_best_size_of_the_budget_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path, "evaluation.k=[20]")
    assert {row["knn"] for row in found(capsys, tmp_path)} == {None}
    measured(tmp_path, {Subnet(32, 2): 50.0, Subnet(48, 2): 62.0, Subnet(32, 3): 60.0})
    measured(tmp_path, {Subnet(32, 3): 99.0}, step=3)  # of another teacher
    measured(tmp_path, {Subnet(48, 3): 62.0})
    rows = found(capsys, tmp_path)
    assert [row["size"] for row in rows] == ["32x2", "32x3", "48x2", "48x3"]
    assert [row["knn"] for row in rows] == [50.0, 60.0, 62.0, 62.0]
    assert [row["best"] for row in rows] == [False, False, True, False]  # the cheaper of two
    small = found(capsys, tmp_path, "--max-params", f"{rows[1]['parameters'] / 1e3}K")
    assert [(row["size"], row["best"]) for row in small] == [("32x2", False), ("32x3", True)]
    least = found(capsys, tmp_path, "--max-gflops", rows[0]["gflops"])
    assert [row["size"] for row in least] == ["32x2"]


def test_a_cheaper_size_within_the_error_of_the_best_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """62 % of 400 queries: 1.96 sqrt(62 x 38 / 400) = 4.76 points."""
    run_folder(tmp_path, "evaluation.k=[20]")
    accuracies = {Subnet(32, 2): 57.2, Subnet(32, 3): 57.3, Subnet(48, 2): 62.0}
    measured(tmp_path, accuracies, queries=400)
    rows = found(capsys, tmp_path)
    assert [row["best"] for row in rows] == [False, True, False, False]
    assert rows[2]["error"] == pytest.approx(4.757, abs=1e-3) and rows[3]["error"] is None


def test_sizes_are_judged_by_a_measure_whose_error_is_not_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As nmi, ari and fmi of clusters."""
    run_folder(tmp_path)
    for size, value in (("32x2", 50.0), ("48x2", 50.5)):
        row = ScoreRow("clusters", 7, size, "nmi", value, None, "val", "", {}, 1.0, {}, "2")
        results.append(tmp_path / "evaluations.jsonl", row)
    rows = found(capsys, tmp_path, "--worth", "clusters_nmi")
    assert [row["size"] for row in rows if row["best"]] == ["48x2"]
    assert cli.main(["sizes", str(tmp_path), "--worth", "clusters_nmi"]) == 0
    printed = capsys.readouterr().out
    assert "its error is not known" in printed
    assert f"eval clusters {tmp_path} --sizes all, with the options of the other" in printed


def test_table_is_aligned_and_says_how_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path, "evaluation.k=[20]")
    measured(tmp_path, {Subnet(32, 2): 50.0})
    measured(tmp_path, {Subnet(48, 2): 61.5}, images=20)
    assert cli.main(["sizes", str(tmp_path)]) == 0
    title, head, *lines = capsys.readouterr().out.splitlines()
    assert "step 7: 4 sizes" in title and head.endswith("k-NN (k=20)")
    assert {len(line) for line in [head, *lines[:4]]} == {len(head)}
    assert (
        lines[0].startswith("  32x2") and "small" in lines[0] and lines[0].endswith("50.00 ± 0.6 %")
    )
    assert lines[2].startswith("* 48x2")
    rest = "\n".join(lines[4:])
    assert "bank of 40 of 40" in rest and "bank of 20 of 40" in rest
    assert "cannot be compared" in rest and "2 sizes without k-NN: poa-ds eval knn" in rest


def test_csv_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path)
    assert cli.main(["sizes", str(tmp_path), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["size"] for row in rows] == ["32x2", "32x3", "48x2", "48x3"]
    assert rows[0]["name"] == "small" and rows[0]["knn"] == ""


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--max-params", "10"], 1, "no size is within the budget: 32x2 has 32.4 K parameters"),
        (["--max-params", "lots"], 2, "'lots' is not a number above 0 such as 25M"),
        (["--csv", "--json"], 2, "not allowed with"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    run_folder(tmp_path)
    try:
        assert cli.main(["sizes", str(tmp_path), *words]) == status
    except SystemExit as error:  # argparse's own
        assert error.code == status
    assert message in capsys.readouterr().err


def test_large_numbers_are_short() -> None:
    assert [short(n) for n in (32_416, 999_499, 999_500, 303_350_784, 1_136_480_000)] == [
        "32.4 K",
        "999 K",
        "1 M",
        "303 M",
        "1.14 G",
    ]


def timed(folder: Path, times: dict[str, float], *, spread: float = 0.0) -> None:
    place = Place("cpu", processor("cpu"), os.cpu_count(), 1, "torch 2", 1, "fp32", 32)
    for size, median in times.items():
        low, high = median * (1 - spread / 2), median * (1 + spread / 2)
        results.append(
            folder / "latency.jsonl", LatencyRow(7, size, place, median, low, high, 30, 1.5)
        )


def test_a_budget_of_time_takes_what_was_measured_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path, "evaluation.k=[20]")
    measured(tmp_path, {Subnet(32, 2): 50.0, Subnet(32, 3): 60.0, Subnet(48, 2): 58.0})
    timed(tmp_path, {"32x2": 9.0, "32x3": 30.0, "48x2": 20.0, "48x3": 40.0})
    timed(tmp_path, {"32x2": 10.0})  # newer
    rows = found(capsys, tmp_path)
    assert [row["latency"] for row in rows] == [10.0, 30.0, 20.0, 40.0]
    within = found(capsys, tmp_path, "--max-latency", "0.02s")
    assert [(row["size"], row["best"]) for row in within] == [("32x2", False), ("48x2", True)]
    assert [row["size"] for row in found(capsys, tmp_path, "--cost", "latency")] == [
        *("32x2", "48x2", "32x3", "48x3")
    ]
    assert cli.main(["sizes", str(tmp_path), "--max-latency", "5ms"]) == 1
    assert "32x2 takes 10 ms" in capsys.readouterr().err
    assert cli.main(["sizes", str(tmp_path)]) == 0
    _, head, *lines = capsys.readouterr().out.splitlines()
    assert "latency ms" in head and {len(line) for line in lines[:4]} == {len(head)}


def test_the_front_depends_on_the_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """32x3 has fewer parameters than 48x2 but takes longer."""
    run_folder(tmp_path, "evaluation.k=[20]")
    measured(tmp_path, {Subnet(32, 2): 50.0, Subnet(32, 3): 57.0, Subnet(48, 2): 58.0})
    timed(tmp_path, {"32x2": 10.0, "32x3": 30.0, "48x2": 20.0})
    by_size = found(capsys, tmp_path, "--pareto")
    assert [row["size"] for row in by_size] == ["32x2", "32x3", "48x2"]
    by_time = found(capsys, tmp_path, "--pareto", "--cost", "latency")
    assert [row["size"] for row in by_time] == ["32x2", "48x2"]
    assert all(row["front"] for row in by_time)
    assert cli.main(["sizes", str(tmp_path), "--pareto", "--cost", "latency"]) == 0
    out = capsys.readouterr().out
    assert "front of latency" in out and "* 48x2" in out


def test_unsteady_times_and_those_of_nobody_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder(tmp_path, "evaluation.k=[20]")
    words = ["sizes", str(tmp_path), "--max-latency", "20ms"]
    assert cli.main(words) == 1
    assert "poa-ds latency RUN" in capsys.readouterr().err
    assert cli.main(["sizes", str(tmp_path), "--pareto"]) == 1
    assert "no size has k-NN" in capsys.readouterr().err
    timed(tmp_path, {"32x2": 10.0}, spread=0.3)
    assert cli.main(words) == 1
    assert "32x2 is unsteady (load 1.5 then)" in capsys.readouterr().err
    assert cli.main([*words, "--accept-unsteady"]) == 0
    assert "10.00?" in capsys.readouterr().out

"""What the page chooses a size by besides accuracy: times, and errors of differences."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

from poa_ds.evaluate import results, right
from poa_ds.evaluate.latency import rows as latency_rows
from poa_ds.evaluate.pareto import front
from poa_ds.report import choosing, runs
from poa_ds.system.run_folder import RunFolder
from tests.support.made_runs import keep_answers, keep_times, made_run

ALLOWED = 4.5  # contrast of text, WCAG 2.1 AA


def test_times_are_those_of_the_place_that_was_measured_last(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", evaluations=1, steps=10)
    assert runs.read(folder)["times"] == {} and runs.read(folder)["sizes"][0]["latency"] is None
    keep_times(folder)
    path = RunFolder(folder).latency
    rows = latency_rows.read(path)
    elsewhere = [json.loads(row.to_json()) for row in rows[:2]]
    for row in elsewhere:
        row["place"]["processor"], row["median"] = "another", 99.0
    before = "".join(json.dumps(row) + "\n" for row in elsewhere)
    path.write_text(before + path.read_text())
    run = runs.read(folder)
    assert [size["latency"] for size in run["sizes"]] == pytest.approx([r.median for r in rows])
    assert run["times"] == {"place": str(rows[0].place), "unsteady": [rows[3].size]}


def test_errors_of_differences_are_there_for_whatever_a_budget_may_make_the_highest(
    tmp_path: Path,
) -> None:
    folder = made_run(tmp_path / "run", evaluations=2, steps=10)
    assert runs.read(folder)["sure"] == {}
    keep_answers(folder)
    run = runs.read(folder)
    [kept] = results.lines(RunFolder(folder).right, right.RightRow.from_json)
    values = [kept.right[size["size"]] for size in run["sizes"]]
    accuracies = run["readouts"][1]["values"][-1]
    highest = set()
    for cost in ("parameters", "gflops"):
        highest |= front([(s[cost], v) for s, v in zip(run["sizes"], accuracies, strict=True)])
    assert {*run["sure"]} == {run["sizes"][number]["size"] for number in highest}
    for number in highest:
        errors = [right.paired(value, values[number])[1] for value in values]
        assert run["sure"][run["sizes"][number]["size"]] == pytest.approx(errors, rel=1e-4)


def test_runs_are_paired_by_query_where_both_answered_the_same(tmp_path: Path) -> None:
    folders = [made_run(tmp_path / name, evaluations=2, steps=10) for name in "abc"]
    other = made_run(tmp_path / "d", evaluations=2, steps=10, queries=380)
    for folder in (*folders[:2], other):
        keep_answers(folder)
    [pair] = choosing.between_runs([*folders, other])
    assert pair["runs"] == [0, 1] and pair["k"] == 20 and len(pair["errors"]) == 15
    assert set(pair["errors"].values()) == {0.0}  # they gave the same answers
    assert choosing.between_runs(folders[:1]) == []


def test_an_earlier_step_that_is_measured_again_does_not_make_runs_alike(tmp_path: Path) -> None:
    """Their newest evaluations are by other queries, whatever was appended to both since."""
    folders = []
    for name, queries in (("a", 760), ("b", 380)):
        folder = made_run(tmp_path / name, evaluations=2, steps=10, queries=queries)
        keep_answers(folder)
        files = RunFolder(folder)
        newest = results.read(files.knn)[-1]
        protocol = {**newest.protocol, "queries": {"images": 100, "of": 760, "index_sha256": "b"}}
        results.append(files.knn, results.KnnRow(5, protocol, newest.knn))
        folders.append(folder)
    assert choosing.between_runs(folders) == []


def test_every_text_stands_out_from_what_is_behind_it() -> None:
    style = (resources.files("poa_ds.report") / "page_parts" / "page.css").read_text()
    for theme in re.findall(r":root\S*?\{(color-scheme[^}]*)\}", style):
        colour = dict(re.findall(r"--(\w+):#(\w+)", theme))
        texts = ("ink", "soft", "accent", "bad", "good", "floor", "pixels")
        pairs = [(text, behind) for text in texts for behind in ("card", "bg")]
        for text, behind in [*pairs, ("card", "accent"), ("bad", "badbg"), ("ink", "grid")]:
            found = _contrast(colour[text], colour[behind])
            assert found >= ALLOWED, (theme[:20], text, behind, found)


def _contrast(first: str, second: str) -> float:
    """WCAG 2.1: (lighter + 0.05) / (darker + 0.05) of the relative luminances."""

    def luminance(colour: str) -> float:
        colour = "".join(2 * c for c in colour) if len(colour) == 3 else colour
        parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)

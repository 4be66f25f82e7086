"""`poa-ds compare`: the figures are those of the files, and only like is compared with like."""

import csv
import io
import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest

from poa_ds.bench import cost
from poa_ds.bench.compare import runs
from poa_ds.cli import main
from poa_ds.evaluate import results
from poa_ds.evaluate.right import RightRow
from poa_ds.plan import step_time
from poa_ds.recipe import load
from poa_ds.system.run_folder import RunFolder
from tests.support.made_runs import made_run
from tests.support.teachers import make_teacher


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs: the second one takes half the images in each of twice as many steps."""
    made_run(tmp_path / "long", "backbone.width.max=64", "backbone.names={}", steps=200)
    half = ("batch.images_per_slot=16", "objective.method=single", "evaluation.sizes=all")
    alone = ("backbone.width.min=48", "backbone.width.max=48", "backbone.names={}")
    made_run(tmp_path / "alone", *half, *alone, steps=400, evaluations=9)
    return tmp_path / "long", tmp_path / "alone"


def last(folder: Path) -> dict:
    return json.loads((folder / "knn.jsonl").read_text().splitlines()[-1])


def as_json(capsys: pytest.CaptureFixture, *words: object) -> dict:
    assert main(["compare", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_accuracies_errors_and_leads_are_those_of_the_files(folders, capsys) -> None:
    found = as_json(capsys, *folders)
    files = {folder.name: last(folder)["knn"] for folder in folders}
    assert {row["size"] for row in found["sizes"]} == {*files["long"], *files["alone"]}
    for row in found["sizes"]:
        wanted = {name: knn[row["size"]]["20"] for name, knn in files.items() if row["size"] in knn}
        assert {name: v["percent"] for name, v in row["knn"].items()} == wanted
        if len(wanted) < 2:
            assert row["lead"] is None
            continue
        gap = wanted["alone"] - wanted["long"]
        squares = sum(p * (100 - p) for p in wanted.values())  # two samples of 760 queries
        error = 1.96 * sqrt(squares / 760)
        assert row["lead"]["name"] == ("alone" if gap > 0 else "long")
        assert row["lead"]["points"] == pytest.approx(abs(gap))
        assert row["lead"]["error"] == pytest.approx(error)
        assert row["lead"]["shown"] == (abs(gap) > error)
    both = [row for row in found["sizes"] if row["lead"]]
    assert [row["size"] for row in both] == ["48x2", "48x3", "48x4"]


def test_leads_are_paired_where_the_answers_were_kept(folders, capsys) -> None:
    """48x2: the first gets 40 queries that the other does not, and the other none of its own."""
    for folder, right in zip(folders, (540, 500), strict=True):
        row = last(folder)
        bits = np.arange(760) < right
        row["knn"]["48x2"]["20"] = 100 * right / 760
        path = folder / "knn.jsonl"
        path.write_text(path.read_text() + json.dumps(row) + "\n")
        results.append(
            folder / "knn_right.jsonl",
            RightRow.of(row["step"], row["protocol"], 20, {"48x2": bits}),
        )
    by_size = {row["size"]: row["lead"] for row in as_json(capsys, *folders)["sizes"]}
    lead, share = by_size["48x2"], 40 / 760
    assert lead["name"] == "long" and lead["points"] == pytest.approx(100 * share)
    assert lead["error"] == pytest.approx(196 * sqrt(share * (1 - share) / 760))
    assert lead["by_query"] and lead["shown"] and not by_size["48x3"]["by_query"]
    assert main(["compare", *map(str, folders)]) == 0
    said = capsys.readouterr().out
    assert "long +5.3 ± 1.6\n" in said and "~ not paired" in said


def test_at_equal_images_each_is_taken_where_the_cheapest_ends(folders, capsys) -> None:
    """200 steps of 64 images and 400 of 32 are the same; at equal steps the second is halfway."""
    by = {name: as_json(capsys, *folders, "--by", name)["runs"] for name in ("images", "steps")}
    assert [run["compared_step"] for run in by["images"]] == [200, 400]
    assert [run["compared_step"] for run in by["steps"]] == [200, 200]


def test_flops_and_seconds_by_a_slow_sum(folders, capsys) -> None:
    long = folders[0]
    recipe = load.kept_recipe(long / "config.yaml")
    drawn = step_time.draws(recipe, "balanced", 1).mean
    flops = 2 * 200 * step_time.work(recipe).flops(drawn)
    rows = [json.loads(line) for line in (long / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(row["speed/step_ms"] for row in rows if "speed/step_ms" in row) / 1000
    [point] = [p for p in as_json(capsys, *folders)["runs"][0]["evaluations"] if p["step"] == 200]
    assert point["cost"]["flops"] == pytest.approx(flops)
    assert point["cost"]["images"] == 200 * 64
    assert point["cost"]["seconds"] == pytest.approx(seconds)  # every step of it was logged


def test_a_logged_step_stands_for_those_before_it(tmp_path: Path) -> None:
    rows = [{"step": 10, "time": 0.0, "speed/step_ms": 100.0}, {"step": 20, "time": 1.0}]
    rows.append({"step": 30, "time": 2.0, "speed/step_ms": 50.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = cost.seconds(path)
    assert [*found] == [*range(1, 31)]
    assert {step: found[step] for step in (5, 10, 20, 30)} == pytest.approx(
        {5: 0.5, 10: 1.0, 20: 1.5, 30: 2.0}
    )


def test_csv_and_the_text_say_the_same(folders, capsys) -> None:
    assert main(["compare", *map(str, folders), "--csv"]) == 0
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert main(["compare", *map(str, folders)]) == 0
    said = capsys.readouterr().out
    for row in rows:
        line = next(text for text in said.splitlines() if text.startswith(row["size"]))
        assert f"{float(row['knn']):.1f} ± {float(row['error']):.1f}" in line
        assert (
            float(row["knn"])
            == last(Path(folders[0].parent / row["run"]))["knn"][row["size"]]["20"]
        )


def test_runs_of_another_protocol_are_refused_or_marked(tmp_path: Path, folders, capsys) -> None:
    other = made_run(tmp_path / "other", queries=100)
    words = ["compare", str(folders[0]), str(other)]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "other was measured in another way" in said and "100 queries" in said
    assert main([*words, "--mixed"]) == 0
    assert "other ≠" in capsys.readouterr().out


def test_what_cannot_be_compared_is_named(tmp_path: Path, folders, capsys) -> None:
    one = str(folders[0])
    assert main(["compare", one]) == 2
    assert main(["compare", one, str(tmp_path / "nothing")]) == 1
    assert main(["compare", *map(str, folders), "--k", "7"]) == 1
    assert main(["compare", one, f"{one}/../long"]) == 2
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "picture.txt")]) == 2
    RunFolder(folders[1]).metrics.unlink()
    assert main(["compare", *map(str, folders), "--by", "seconds"]) == 2
    said = capsys.readouterr().err.splitlines()
    for line, words in zip(
        said,
        (
            "two runs or more",
            "is no run",
            "no k-NN for k = 7: give --k 10 or 20",
            "long is given twice",
            "picture.txt: a picture is written as .png",
            "what alone has cost",
        ),
        strict=True,
    ):
        assert words in line


def test_the_cost_of_a_frozen_teacher_is_said_to_be_missing(tmp_path, folders, capsys) -> None:
    seed = ("objective={method: seed, ibot: 0, koleo: 0}", "crops.local_count=0")
    teacher = make_teacher(tmp_path / "teacher")
    made_run(tmp_path / "pupil", *seed, f"distill={{teacher: {teacher}, queue: 1024}}")
    words = ["compare", str(folders[0]), str(tmp_path / "pupil")]
    assert main(words) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f"pupil learned from {teacher}: what that had cost before is not counted"
    assert [run["teacher"] for run in as_json(capsys, *words[1:])["runs"]] == ["", str(teacher)]


def test_a_run_that_was_killed_while_it_wrote_is_compared_by_what_is_whole(folders, capsys) -> None:
    """Its last lines are torn, and nothing says that it has ended."""
    for name in ("knn", "metrics"):
        path = getattr(RunFolder(folders[1]), name)
        path.write_text(path.read_text()[:-40])
    found = as_json(capsys, *folders)
    torn = next(run for run in found["runs"] if run["name"] == "alone")
    assert torn["compared_step"] < 400 and found["sizes"]


def test_an_evaluation_that_was_repeated_in_another_way_counts_as_the_later_one(folders) -> None:
    path = RunFolder(folders[0]).knn
    again = last(folders[0])
    again["protocol"]["queries"]["images"] = 100
    again["knn"] = {"32x2": {"20": 50.0}}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    [first], k = runs.read(folders[:1], None)
    assert k == 20 and first.points[-1].knn == {"32x2": 50.0}


def test_the_picture_is_drawn(folders, tmp_path: Path, capsys) -> None:
    out = tmp_path / "compared.png"
    assert main(["compare", *map(str, folders), "--by", "flops", "--out", str(out)]) == 0
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert f"drawn: {out}" in capsys.readouterr().err

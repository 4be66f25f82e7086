"""poa-ds report without a browser: what the page holds is what the run's files hold."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from poa_ds.cli import main
from poa_ds.evaluate import results, score_rows
from poa_ds.recipe import derived, load
from poa_ds.report import runs
from poa_ds.report.page import as_script, fitting, page
from poa_ds.report.series import thinned
from poa_ds.system.errors import UserError
from poa_ds.system.events import Events
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import metrics_file
from tests.support.made_runs import PHOTOS, QUERIES, keep_scores, made_run

RESNET = PHOTOS.with_name("resnet152x2_in1k.yaml")
HOSTILE = "</script><b onmouseover=alert(1)>&amp;"


def report(out: Path, *words: object) -> str:
    assert main(["report", *map(str, words), "--out", str(out)]) == 0
    return out.read_text("utf-8")


def data(text: str) -> dict:
    [found] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_page_holds_the_accuracies_of_the_files(tmp_path: Path):
    folder = made_run(tmp_path / "run")
    [run] = data(report(tmp_path / "report.html", folder))["runs"]
    rows = metrics_file.read_rows(RunFolder(folder).metrics)
    logged = {r["step"]: r for r in rows if any(name.startswith("knn_top1") for name in r)}
    [shown] = [r for r in run["readouts"] if r["k"] == 20]
    assert shown["steps"] == sorted(logged) and shown["queries"] == QUERIES
    for step, values in zip(shown["steps"], shown["values"], strict=True):
        for size, value in zip(run["sizes"], values, strict=True):
            assert value == logged[step][f"knn_top1/w{size['width']:04d}_d{size['blocks']:02d}"]
    assert shown["pixels"] == 19.0 and shown["random"] == shown["values"][0]


def test_without_scripts_there_is_a_table(tmp_path: Path):
    folder = made_run(tmp_path / "run")
    text = report(tmp_path / "report.html", folder)
    [table] = re.findall(r"<noscript>(.*?)</noscript>", text, re.S)
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    final = [json.loads(line) for line in RunFolder(folder).knn.read_text().splitlines()][-1]
    shown = {cell[1]: cell[-1] for cell in cells}
    assert shown == {size: f"{by_k['20']:.2f} %" for size, by_k in final["knn"].items()}


def test_costs_are_those_of_the_backbone(tmp_path: Path):
    [run] = data(report(tmp_path / "report.html", made_run(tmp_path / "run")))["runs"]
    recipe = load.recipe(PHOTOS)
    shape = derived.shape(recipe)
    for subnet, shown in zip(derived.space(recipe).subnets(), run["sizes"], strict=True):
        assert shown["size"] == str(subnet) and shown["parameters"] == shape.parameters(subnet)
        assert shown["gflops"] == pytest.approx(shape.flops(subnet, 32) / 1e9, rel=1e-4)


def test_texts_of_a_run_cannot_end_the_script_or_become_html(tmp_path: Path):
    folder = made_run(tmp_path / "run", f"mlflow.run_name='{HOSTILE}'")
    text = report(tmp_path / "report.html", folder, "--title", HOSTILE)
    assert data(text)["runs"][0]["name"] == HOSTILE == data(text)["title"]
    assert "<b onmouseover" not in text
    assert text.count("</script>") == 3  # of the page's own


def test_what_is_put_in_is_not_looked_through_for_places(tmp_path: Path):
    run = runs.read(made_run(tmp_path / "run"))
    text = page([run], "@DATA@ @PROGRAM@")
    assert "<title>@DATA@ @PROGRAM@</title>" in text and data(text)["title"] == "@DATA@ @PROGRAM@"


def test_passwords_stay_out_of_the_page(tmp_path: Path):
    folder = made_run(tmp_path / "run")
    recipe = RunFolder(folder).recipe
    store = "uri: postgresql://me:hidden-word@localhost/db"
    text = re.sub(r"uri: .*", store, recipe.read_text(), count=1)
    recipe.write_text(text)
    assert "hidden-word" in recipe.read_text()
    assert "hidden-word" not in report(tmp_path / "report.html", folder)


def test_nothing_is_asked_from_the_network(tmp_path: Path):
    text = report(tmp_path / "report.html", made_run(tmp_path / "run"))
    assert "default-src 'none'" in text
    shell = re.sub(r"<(script|style)\b[^>]*>.*?</\1>", "", text, flags=re.S)
    assert not re.search(r"""\b(src|href)\s*=|@import|url\(""", shell)


def test_a_run_without_evaluation_or_metrics_has_a_page(tmp_path: Path):
    folder = made_run(tmp_path / "none", evaluations=0)
    assert data(report(tmp_path / "a.html", folder))["runs"][0]["readouts"] == []
    RunFolder(folder).metrics.unlink()
    [run] = data(report(tmp_path / "b.html", folder))["runs"]
    assert run["series"] == {} and run["step"] == 0


def test_a_last_line_that_a_kill_cut_short_does_not_count(tmp_path: Path):
    folder = made_run(tmp_path / "run", evaluations=1)
    whole = runs.read(folder)
    for path in (RunFolder(folder).metrics, RunFolder(folder).knn):
        with path.open("a") as file:
            file.write('{"step": 9999, "lo')
    assert runs.read(folder) == whole


def test_a_size_that_was_not_measured_is_null(tmp_path: Path):
    folder = made_run(tmp_path / "run", evaluations=2)
    path = RunFolder(folder).knn
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[1]["knn"]["32x2"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = report(tmp_path / "report.html", folder)
    assert data(text)["runs"][0]["readouts"][0]["values"][1][0] is None
    assert "NaN" not in as_script(data(text))


def test_how_a_run_ended_is_told(tmp_path: Path):
    folder = made_run(tmp_path / "run")
    told = []
    records = ('{"status": 0, "step": 9}', '{"status": 75, "reason": "SIGTERM"}', "half a rec")
    for record in ("", *records):
        RunFolder(folder).ended.write_text(record)
        told.append(runs.read(folder)["ended"])
    assert told == ["", "finished", "stopped (SIGTERM), can go on", ""]


def test_alarms_and_skipped_steps_are_events(tmp_path: Path):
    events = runs.read(made_run(tmp_path / "run", steps=30))["events"]
    found = [(event["kind"], event["step"]) for event in events]
    assert found == [("skipped", 11), ("alarm", 15), ("over", 20)]


def test_runs_of_one_name_are_called_by_what_tells_them_apart(tmp_path: Path):
    names = ("a", "b", "more/a")
    folders = [made_run(tmp_path / name, "mlflow.run_name=same") for name in names]

    def called(*folders: Path) -> list[str]:
        return [run["name"] for run in data(report(tmp_path / "r.html", *folders))["runs"]]

    assert called(*folders[:2]) == ["a", "b"]
    assert called(*folders) == [str(folder) for folder in folders]


def test_a_folder_that_is_no_run_is_named(tmp_path: Path, capsys):
    assert (
        main(["report", str(tmp_path), "--out", str(tmp_path / "x.html")]) == UserError.exit_status
    )
    assert f"{tmp_path} is no run" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_thinning_keeps_every_spike_and_every_change():
    rows = [{"step": i, "a": 0.1 * (i % 5), "b": 1.0, "health/alarm": 0.0} for i in range(20_000)]
    rows[5_003]["a"], rows[5_004]["b"], rows[12_345]["health/alarm"] = -7.0, 99.0, 1.0
    kept = thinned(rows)
    assert {row["step"]: row.get("a") for row in kept}[5_003] == -7.0
    assert {row["step"]: row.get("b") for row in kept}[5_004] == 99.0
    alarms = {row["step"]: row["health/alarm"] for row in kept if "health/alarm" in row}
    assert [alarms[step] for step in (0, 12_344, 12_345, 12_346, 19_999)] == [0, 0, 1, 0, 0]
    assert all(sum(name in row for row in kept) <= 1300 for name in ("a", "b", "health/alarm"))


def test_465_sizes_and_100_evaluations_stay_small(tmp_path: Path):
    options = {"evaluations": 100, "steps": 2000, "ks": (10, 20, 100, 200)}
    run = runs.read(made_run(tmp_path / "run", config=RESNET, **options))
    assert len(run["sizes"]) == 465
    whole = page([run], "t")
    fewer = fitting([run], "t", len(whole.encode()) - 1)
    assert len(whole.encode()) < 8e6
    assert [r["k"] for r in data(whole)["runs"][0]["readouts"]] == [10, 20, 100, 200]
    assert [r["k"] for r in data(fewer)["runs"][0]["readouts"]] == [20]
    with pytest.raises(UserError, match="--max-mb"):
        fitting([run], "t", 1e6)


def test_what_the_run_wrote_down_is_shown_instead(tmp_path: Path):
    folder = made_run(tmp_path / "run", steps=30)
    events = Events(RunFolder(folder).events, fresh=True, writes=True)
    events.append(0, "start", "2 ranks")
    events.append(20, "resume", HOSTILE)
    found = runs.read(folder)["events"]
    assert [(e["step"], e["kind"], e["text"]) for e in found] == [
        (0, "start", "2 ranks"),
        (20, "resume", HOSTILE),
    ]


def test_a_folder_s_name_stays_text(tmp_path: Path):
    folder = made_run(tmp_path / HOSTILE.replace("/", ";"), "mlflow.run_name=''", evaluations=1)
    text = report(tmp_path / "report.html", folder)
    [run] = data(text)["runs"]
    assert run["name"] == folder.name and run["path"] == str(folder)
    assert run["shell"] == f"'{folder}'"  # in the command to copy it is one word
    assert "<b onmouseover" not in text and text.count("</script>") == 3


def test_numbers_that_are_not_finite_are_counts_and_huge_ones_are_kept(tmp_path: Path):
    """What a run that diverges writes: the tracker counts nan and inf, and leaves them out."""
    folder = made_run(tmp_path / "run", evaluations=1, steps=30)
    path = RunFolder(folder).metrics
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for count, row in enumerate(rows[-3:], start=1):
        del row["loss/total"]
        row |= {"nonfinite/loss/total": float(count), "gradient_norm/heads": 1e38}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    series = data(report(tmp_path / "report.html", folder))["runs"][0]["series"]
    assert series["nonfinite/loss/total"] == {"steps": [28, 29, 30], "values": [1, 2, 3]}
    assert series["loss/total"]["steps"] == [*range(1, 28)]
    assert series["gradient_norm/heads"]["values"][-3:] == [1e38] * 3


def test_a_nan_that_another_program_wrote_is_named_with_its_line(tmp_path: Path, capsys):
    folder = made_run(tmp_path / "run", evaluations=1, steps=30)
    path = RunFolder(folder).metrics
    lines = path.read_text().splitlines()
    lines[4] = '{"step": 5, "time": 1.0, "loss/total": NaN}'
    path.write_text("\n".join(lines) + "\n")
    words = ["report", str(folder), "--out", str(tmp_path / "x.html")]
    assert main(words) == UserError.exit_status
    said = capsys.readouterr().err
    assert f"{path}, line 5 is damaged: 'loss/total' is 'nan', not a number" in said


def test_other_accuracies_are_read_outs_too_with_their_floors_and_protocols(tmp_path: Path):
    folder = made_run(tmp_path / "run", evaluations=1)
    values, path = keep_scores(folder), RunFolder(folder).evaluations
    row = score_rows.read(path)[0]
    error = results.error(25.0, 500)
    floor = {"metric": "top1_random_weights", "value": 25.0, "error": error}
    results.append(path, replace(row, **floor))
    results.append(path, replace(row, kind="clusters", metric="nmi", error=None))
    other = replace(row, value=50.0, error=results.error(50.0, 500), step=800)
    results.append(path, replace(other, protocol={**row.protocol, "crop": 28}))
    [run] = data(report(tmp_path / "report.html", folder))["runs"]
    *knn, linear = run["readouts"]
    assert [r["k"] for r in knn] == [10, 20] and linear["k"] == "linear_top1"
    names = [size["size"] for size in run["sizes"]]
    assert linear["steps"] == [400, 800] and linear["queries"] == 500
    assert linear["values"][0] == [pytest.approx(values[name], rel=1e-4) for name in names]
    assert linear["values"][1] == [50.0 if name == row.size else None for name in names]
    assert linear["random"] == [25.0 if name == row.size else None for name in names]
    assert linear["pixels"] is None and len(linear["protocols"]) == 2

"""The page in headless Chromium: what pointing at it says is what the run's files say.

A program behind the page's own points at curves, cells and dots and leaves what the page answers
in its document, which Chromium prints.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from poa_ds.checkpoint import deployed
from poa_ds.cli import main
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone
from poa_ds.report import command, runs
from poa_ds.system.run_folder import RunFolder
from tests.support import chromium
from tests.support.made_runs import keep_answers, keep_scores, keep_times, made_run

pytestmark = pytest.mark.slow
WATCH = """<script>window.wrong = [];
addEventListener("error", e => wrong.push(e.message));
addEventListener("unhandledrejection", e => wrong.push(String(e.reason)));
addEventListener("securitypolicyviolation", e => wrong.push(e.violatedDirective + e.blockedURI));
</script>"""
POINT = f"<script>{Path(__file__).with_name('point.js').read_text()}</script>"


PHONE = 400  # pixels; Chromium makes no window so narrow, but frames
FRAME = f"""<body><iframe src="report.watched.html" width="{PHONE}" height="900"></iframe><script>
addEventListener("message", e => {{
  const said = document.createElement("pre");
  said.id = "said";
  said.textContent = e.data;
  document.body.replaceChildren(said);
}});</script></body>"""


def spoken(page: Path, parts: str, *, phone: bool = False) -> dict:
    """What the page answers in a window, or as narrow as a phone. parts: see point.js."""
    asked = f"<head><script>const PARTS = {json.dumps(parts)};</script>{WATCH}"
    text = page.read_text("utf-8").replace("<head>", asked, 1)
    watched = page.with_suffix(".watched.html")
    watched.write_text(text.replace("</body>", f"{POINT}</body>"), "utf-8")
    opened = watched
    if phone:
        opened = page.with_suffix(".frame.html")
        opened.write_text(FRAME.replace("report.watched.html", watched.name), "utf-8")
    found = chromium.said(opened, "--window-size=1400,900")
    assert "fault" not in found, found
    return found


def measured(folder: Path) -> dict[tuple[str, int], float]:
    """(size, step) -> percent at k = 20, of knn.jsonl itself."""
    rows = map(json.loads, RunFolder(folder).knn.read_text().splitlines())
    return {(s, row["step"]): v["20"] for row in rows for s, v in row["knn"].items()}


def pointed(lines: list[str]) -> dict[tuple[str, int], float]:
    found = {}
    for text in lines:
        size, percent, step = re.match(r"(\S+)[^\n]*\n([\d.]+) % at step ([\d,]+)", text).groups()
        found[size, int(step.replace(",", ""))] = float(percent)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher, times, and the answers of its last evaluation."""
    name = "mlflow.run_name='</script><b onmouseover=alert(1)>x'"
    folder = made_run(tmp_path_factory.mktemp("made") / "run", name, evaluations=3)
    keep_answers(folder)
    keep_times(folder)
    recipe = load.kept_recipe(RunFolder(folder).recipe)
    tensors = {f"backbone.{name}": t for name, t in backbone(recipe).state_dict().items()}
    deployed.publish(folder, tensors, recipe, step=400)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict:
    out = folder.with_name("report.html")
    command.write([folder], out)
    return spoken(out, "all")


def dotted(lines: list[str], step: int) -> dict[tuple[str, int], float]:
    found = [re.match(r"(\S+)[^\n]*\n([\d.]+) %", text).groups() for text in lines]
    return {(size, step): float(percent) for size, percent in found}


def test_pointing_gives_the_values_of_the_files(folder: Path, said: dict):
    """With the mouse, and by keyboard."""
    values = measured(folder)
    final = {key: value for key, value in values.items() if key[1] == 400}
    assert pointed(said["curves"]) == values == pointed(said["cells"])
    assert [*said["dots"]] == ["parameters", "gflops", "latency"]
    for dots in (*said["dots"].values(), said["keys"]["dots"]):
        assert dotted(dots, 400) == final and len(dots) == 15
    by_key = [text for text in said["keys"]["curves"] if " at step " in text]
    assert pointed(by_key) == values and len(by_key) == len(values)
    assert pointed(said["keys"]["cells"]) == final and len(said["keys"]["cells"]) == 15


def test_a_cell_lights_up_its_row_and_column_and_the_steps_can_be_played(said: dict):
    assert said["lit"] == said["near"] == 5 + 3 - 1 and not said["after"]
    played = [("step 0", "❚❚ pause"), ("step 200", "❚❚ pause"), ("step 400", "▶ play")]
    assert [*zip(said["played"][::2], said["played"][1::2], strict=True)] == [*played, played[-1]]
    assert said["cursors"] > 15  # one in each small chart


def test_shifted_evaluations_and_swapped_sizes_would_be_seen(folder: Path, tmp_path: Path):
    values = measured(folder)
    for change in (
        lambda values: [values[-1], *values[:-1]],
        lambda values: [[row[1], row[0], *row[2:]] for row in values],
    ):
        out = tmp_path / "report.html"
        command.write([folder], out)
        text = out.read_text("utf-8")
        found = re.search(r'id="data">(.*?)</script>', text, re.S)
        data = json.loads(found[1])
        for readout in data["runs"][0]["readouts"]:
            readout["values"] = change(readout["values"])
        wrong = json.dumps(data).replace("<", "\\u003c")
        out.write_text(text.replace(found[1], wrong, 1), "utf-8")
        assert pointed(spoken(out, "curves")["curves"]) != values


BUDGETS = {
    "parameters": lambda budget: ("--max-params", f"{budget:.0f}"),
    "gflops": lambda budget: ("--max-gflops", f"{budget:.9f}"),
    "latency": lambda budget: ("--max-latency", f"{budget:.6f}ms", "--accept-unsteady"),
}


def test_the_budget_chooses_as_poa_ds_sizes_does(folder: Path, said: dict, capsys):
    by_query = 0
    for cost, budget, answer in said["answers"]:
        words = ["sizes", str(folder), "--json", "--cost", cost, *BUDGETS[cost](budget)]
        assert main(words) == 0
        rows = json.loads(capsys.readouterr().out)
        best, [cheapest] = max(rows, key=lambda r: r["knn"]), [r for r in rows if r["best"]]
        reached = f"{best['size']} reaches {best['knn']:.2f} % (± {best['error']:.1f} on 760"
        assert reached in answer, words
        assert f"--size {cheapest['size']} " in answer, words
        assert cheapest == best or f"{cheapest['size']} ({cheapest['knn']:.2f} %)" in answer
        by_query += "query by query" in answer
        assert (cost == "latency") == ("not steady: 48x2" in answer)
    assert len(said["answers"]) == 9 and by_query


def test_nothing_is_asked_and_nothing_fails(said: dict):
    assert said["wrong"] == [] and said["asked"] == [] and said["bold"] == 0
    assert said["theme"][0] == "dark" and said["theme"][1] != "rgb(246, 246, 243)"
    assert "random weights" in said["table"]
    assert "running, or ended without a word" in said["ended"]


def test_two_runs_on_a_phone_do_not_scroll_sideways(folder: Path, said: dict, tmp_path: Path):
    out = tmp_path / "report.html"
    command.write([folder, made_run(tmp_path / "other", evaluations=0)], out)
    frame = spoken(out, "", phone=True)
    assert frame["inner"] == PHONE and frame["wrong"] == []
    assert frame["wide"] <= 0 and said["wide"] <= 0
    assert frame["ahead"] == "No size was evaluated in several of these runs."


def test_who_is_ahead_is_what_poa_ds_compare_says(folder: Path, tmp_path: Path, capsys):
    """Of two runs, by their answers, and of three, one of which has kept none."""
    other, rough = made_run(tmp_path / "other", evaluations=3), tmp_path / "rough"
    path = RunFolder(other).knn
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:  # better where it is narrow
        row["knn"] = {
            size: {k: v + 2.1 - i / 3 for k, v in by_k.items()}
            for i, (size, by_k) in enumerate(row["knn"].items())
        }
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(other, rough)
    keep_answers(other)
    for folders in ([folder, other], [folder, rough]):
        assert main(["compare", *map(str, folders), "--json"]) == 0
        leads = [size["lead"] for size in json.loads(capsys.readouterr().out)["sizes"]]
        out = tmp_path / "report.html"
        command.write(folders, out)
        ahead = spoken(out, "")["ahead"]
        names = {folder.name: runs.read(folder)["name"], folders[1].name: "photos"}
        for lead in leads:
            told = f"{names[lead['name']]} {lead['points']:+.2f} ± {lead['error']:.1f}"
            told += "" if lead["by_query"] else " ~"
            assert told + ("" if lead["shown"] else ", not shown") + "\n" in ahead + "\n"
        shown = sum(lead["shown"] for lead in leads if lead["name"] == folders[1].name)
        count = sum(lead["name"] == folders[1].name for lead in leads)
        assert f"photos in {count} (shown in {shown})" in ahead


@pytest.mark.parametrize("evaluations", [0, 1])
def test_a_run_with_few_evaluations_has_a_page(evaluations: int, tmp_path: Path):
    """Although its last losses are no numbers, and it was killed in the middle of a line."""
    out, folder = tmp_path / "report.html", made_run(tmp_path / "run", evaluations=evaluations)
    path = RunFolder(folder).metrics
    *rows, last = map(json.loads, path.read_text().splitlines())
    del last["loss/total"]
    last["nonfinite/loss/total"] = 1.0
    lines = [json.dumps(row) + "\n" for row in (*rows, last)]
    path.write_text("".join(lines) + lines[-1][:30])
    command.write([folder], out)
    said = spoken(out, "curves")
    assert said["wrong"] == [] and len(said["curves"]) == 15 * evaluations
    assert not evaluations or pointed(said["curves"]) == measured(folder)


def test_the_page_is_drawn_and_dark_where_the_system_is(folder: Path, said: dict, tmp_path: Path):
    dark = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    page = folder.with_name("report.html")
    size = "--window-size=1400,900"
    picture = Image.open(chromium.pictured(page, *dark, size, folder=tmp_path)).convert("RGB")
    pixels = picture.getcolors(picture.width * picture.height)
    assert picture.size == (1400, 900) and len(pixels) > 200
    assert max(pixels)[1] in {(20, 22, 26), (29, 32, 37)}  # --bg or --card


def test_a_run_that_only_linear_classifiers_measured_is_shown_by_them(tmp_path: Path):
    folder = made_run(tmp_path / "run", evaluations=0)
    values = keep_scores(folder)
    out = tmp_path / "report.html"
    command.write([folder], out)
    found = spoken(out, "curves")
    shown = {size: pytest.approx(value, abs=0.01) for size, value in values.items()}
    assert {size: value for (size, _), value in pointed(found["curves"]).items()} == shown
    assert "linear_top1 %" in found["table"] and not found["wrong"]

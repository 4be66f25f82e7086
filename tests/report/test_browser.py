"""The page in headless Chromium: what pointing at it says is what the run's files say.

A program behind the page's own points at curves, cells and dots and leaves what the page answers
in its document, which Chromium prints.
"""

import json
import re
from pathlib import Path

import pytest

from poa_ds.report import command, runs
from poa_ds.system.run_folder import RunFolder
from tests.support import chromium
from tests.support.made_runs import made_run

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


def spoken(page: Path, *, phone: bool = False) -> dict:
    """What the page answers in a window, or as narrow as a phone."""
    text = page.read_text("utf-8").replace("<head>", f"<head>{WATCH}", 1)
    watched = page.with_suffix(".watched.html")
    watched.write_text(text.replace("</body>", f"{POINT}</body>"), "utf-8")
    opened = watched
    if phone:
        opened = page.with_suffix(".frame.html")
        opened.write_text(FRAME.replace("report.watched.html", watched.name), "utf-8")
    return chromium.said(opened, "--window-size=1400,900")


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
    name = "mlflow.run_name='</script><b onmouseover=alert(1)>x'"
    return made_run(tmp_path_factory.mktemp("made") / "run", name, evaluations=3)


@pytest.fixture(scope="module")
def said(folder: Path) -> dict:
    out = folder.with_name("report.html")
    command.write([folder], out)
    return spoken(out)


def test_pointing_gives_the_values_of_the_files(folder: Path, said: dict):
    values = measured(folder)
    assert pointed(said["curves"]) == values
    final = max(step for _, step in values)
    assert pointed(said["cells"]) == {key: v for key, v in values.items() if key[1] == final}
    dots = [re.match(r"(\S+)[^\n]*\n([\d.]+) %", text).groups() for text in said["dots"]]
    assert {(size, final): float(v) for size, v in dots} == pointed(said["cells"])


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
        assert pointed(spoken(out)["curves"]) != values


def test_the_budget_names_the_best_size_and_the_cheapest_within_its_error(folder: Path, said: dict):
    run = runs.read(folder)
    [shown] = [r for r in run["readouts"] if r["k"] == 20]
    final = zip(run["sizes"], shown["values"][-1], strict=True)
    rows = [(size["parameters"], percent, size["size"]) for size, percent in final]
    low, high = min(rows)[0], max(rows)[0]
    for share, answer in zip((0, 0.5, 1), said["answers"], strict=True):
        fits = [row for row in rows if row[0] <= low * (high / low) ** share * 1.0001]
        _, percent, best = max(fits, key=lambda row: row[1])
        error = 1.96 * (percent * (100 - percent) / 760) ** 0.5
        cheapest = min(row for row in fits if percent - row[1] <= error)[2]
        assert f"{best} reaches {percent:.2f} % (± {error:.1f}" in answer
        assert f"--size {cheapest} " in answer
        assert cheapest == best or f"{cheapest} (" in answer


def test_nothing_is_asked_and_nothing_fails(said: dict):
    assert said["wrong"] == [] and said["asked"] == [] and said["bold"] == 0
    assert said["theme"][0] == "dark" and said["theme"][1] != "rgb(246, 246, 243)"
    assert "random weights" in said["table"]


def test_two_runs_on_a_phone_do_not_scroll_sideways(folder: Path, said: dict, tmp_path: Path):
    out = tmp_path / "report.html"
    command.write([folder, made_run(tmp_path / "other", evaluations=0)], out)
    frame = spoken(out, phone=True)
    assert frame["inner"] == PHONE and frame["wrong"] == []
    assert frame["wide"] <= 0 and said["wide"] <= 0


@pytest.mark.parametrize("evaluations", [0, 1])
def test_a_run_with_few_evaluations_has_a_page(evaluations: int, tmp_path: Path):
    out, folder = tmp_path / "report.html", made_run(tmp_path / "run", evaluations=evaluations)
    command.write([folder], out)
    said = spoken(out)
    assert said["wrong"] == [] and len(said["curves"]) == 15 * evaluations
    assert not evaluations or pointed(said["curves"]) == measured(folder)

"""The page as one text: shell, styles, chart library, data and program, nothing from the network.

Charts are plotly's: heat map, fronts, zoom and pointing are one call each, and it runs without
`eval`, under a policy that forbids it and the network. BENCHMARKS.md has it beside bokeh.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources

from plotly.offline import get_plotlyjs

from poa_ds.report.runs import Shown
from poa_ds.system.errors import UserError
from poa_ds.track.alarms import SIGNS

PROGRAM = ("parts.js", "charts.js", "sizes.js", "training.js", "tables.js", "start.js")


def page(runs: Sequence[Shown], title: str, pairs: Sequence[Shown] = ()) -> str:
    """The whole document. pairs: choosing.between_runs."""
    signs = [asdict(sign) for sign in SIGNS]
    data = {"title": title, "runs": runs, "pairs": pairs, "signs": signs}
    parts = {
        "TITLE": html.escape(title),
        "STYLE": _part("page.css"),
        "TABLE": plain_table(runs),
        "DATA": as_script(data),
        "LIBRARY": get_plotlyjs(),
        "PROGRAM": "\n".join(_part(name) for name in PROGRAM),
    }
    return _filled(_part("page.html"), parts)


def fitting(
    runs: Sequence[Shown], title: str, most_bytes: float, pairs: Sequence[Shown] = ()
) -> str:
    """The document within that size: where it is larger, with the recipe's k alone."""
    text = page(runs, title, pairs)
    if len(text.encode()) <= most_bytes:
        return text
    fewer = [
        {**run, "readouts": [r for r in run["readouts"] if _stays(r, run)], "cut": True}
        for run in runs
    ]
    text = page(fewer, title, pairs)
    if len(text.encode()) > most_bytes:
        size = len(text.encode()) / 1e6
        raise UserError(
            f"the page has {size:.2f} MB at least: allow it by --max-mb, or name fewer runs"
        )
    return text


def _stays(readout: Shown, run: Shown) -> bool:
    """Whether it is of the recipe's k, or no k-NN."""
    return readout["k"] == run["report_k"] or isinstance(readout["k"], str)


def as_script(data: object) -> str:
    """JSON that may stand in a script element: no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def plain_table(runs: Sequence[Shown]) -> str:
    """The last accuracies as rows of HTML, for browsers without scripts."""
    lines = []
    for run in runs:
        shown = next((r for r in run["readouts"] if r["k"] == run["report_k"]), None)
        for index, size in enumerate(run["sizes"]):
            value = shown["values"][-1][index] if shown else None
            accuracy = "–" if value is None else f"{value:.2f} %"
            costs = (f"{size['parameters']:,}", f"{size['gflops']:g}")
            cells = (run["name"], size["size"], size["name"], *costs, accuracy)
            lines.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return "".join(lines)


def _filled(shell: str, parts: dict[str, str]) -> str:
    """The shell with each @NAME@ replaced; what is put in is not looked through again."""
    pieces = []
    for name, text in parts.items():
        before, mark, shell = shell.partition(f"@{name}@")
        assert mark, name
        pieces += [before, text]
    return "".join([*pieces, shell])


def _part(name: str) -> str:
    return (resources.files("poa_ds.report") / "page_parts" / name).read_text("utf-8")

"""Rows of evaluations.jsonl for people and for programs: aligned text, CSV, JSON."""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.score_rows import CORRUPTED, ScoreRow
from poa_ds.system.console import tell

PLAIN = ("kind", "step", "size", "name", "metric", "set", "chosen_by", "value", "error", "seconds")


def keep(rows: Sequence[ScoreRow], path: Path, args: argparse.Namespace) -> None:
    """Add the rows to evaluations.jsonl, and print them as the options say."""
    add(rows, path)
    if args.json:
        tell(json.dumps([asdict(row) | {"name": row.name} for row in rows], indent=1))
    elif args.csv:
        tell(as_csv(rows))
    else:
        tell(table(rows))
        tell(f"added to {path}")


def add(rows: Sequence[ScoreRow], path: Path) -> None:
    """Behind what the file has."""
    for row in rows:
        results.append(path, row)


def table(rows: Sequence[ScoreRow]) -> str:
    """A line per size with every metric and its 95 % error, then what was chosen on the way.

    Rows of one step and protocol but for --shots, each of which has a table of its own, as have
    floors and corrupted images, these with a line per metric, as they are many.
    """
    if not rows:
        return "nothing was measured"
    kinds: dict[Any, list[ScoreRow]] = {}
    for row in rows:
        kind = (row.floor, row.set == CORRUPTED, row.protocol.get("shots"))
        kinds.setdefault(kind, []).append(row)
    return "\n".join(
        _by_metric(own) if corrupted else _table(own) for (_, corrupted, _), own in kinds.items()
    )


def _by_metric(rows: Sequence[ScoreRow]) -> str:
    """A line per metric, a column per size."""
    sizes = dict.fromkeys(row.size for row in rows)
    lines = [["", *sizes]]
    for name in dict.fromkeys(row.name for row in rows):
        own = {row.size: row for row in rows if row.name == name}
        lines.append([name, *(_percent(own.get(size)) for size in sizes)])
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0]) + "".join(map(str.rjust, line[1:], widths[1:])) for line in lines
    )


def _table(rows: Sequence[ScoreRow]) -> str:
    names = list(dict.fromkeys(row.name for row in rows))
    lines = [["size", *names, *_plain(rows[0].setting)]]
    for size in dict.fromkeys(row.size for row in rows):
        own = {row.name: row for row in rows if row.size == size}
        first = next(iter(own.values()))
        cells = [_percent(own.get(name)) for name in names]
        lines.append([size, *cells, *map(_text, _plain(first.setting).values())])
    floor = "floor: " if rows[0].floor else ""
    head = f"{floor}step {rows[0].step:,}, {score_rows.describe(rows[0].protocol)}"
    mark = "" if rows[0].protocol.get("published") else "; not a published protocol"
    return "\n".join([head + mark, _aligned(lines)])


def _plain(setting: Mapping[str, Any]) -> dict[str, Any]:
    """Without what stands in the JSON alone."""
    return {name: value for name, value in setting.items() if not isinstance(value, Mapping)}


def _percent(row: ScoreRow | None) -> str:
    if row is None:
        return "-"
    error = "" if row.error is None else f" ± {row.error:.1f}"
    return f"{row.value:.2f}{error} %"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def as_csv(rows: Sequence[ScoreRow]) -> str:
    """A line per row, with a header; setting and protocol stand in the JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*PLAIN, "protocol_id"])
    writer.writerows([*(getattr(row, name) for name in PLAIN), row.protocol_id] for row in rows)
    return text.getvalue().rstrip("\n")

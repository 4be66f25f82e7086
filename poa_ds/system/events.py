"""events.jsonl: what happened to a run, a line each, through all its restarts.

{"step": 40, "time": 1700000000.0, "kind": "resume", "text": "4 ranks on 1 host, ..."}
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from poa_ds.system import json_text
from poa_ds.system.console import say
from poa_ds.system.errors import UserError

Kind = Literal["start", "resume", "stop", "end", "alarm", "over", "skipped"]


@dataclass(frozen=True)
class Event:
    """step: the last that was done when it happened. time: in seconds since 1970."""

    step: int
    time: float
    kind: Kind
    text: str = ""


class Events:
    """Writes them. writes: whether this rank does. Where the disk fails, the run goes on."""

    def __init__(self, path: Path, *, fresh: bool, writes: bool) -> None:
        self._path, self._writes = path, writes
        if writes and fresh:
            path.unlink(missing_ok=True)

    def append(self, step: int, kind: Kind, text: str = "") -> None:
        """Add one line, on the disk when this returns; in the place of one that was cut short."""
        if not self._writes:
            return
        event = Event(step, round(time.time(), 3), kind, text)
        try:
            with open(self._path, "ab") as file:
                before = self._path.read_bytes() if file.tell() else b""
                if not before.endswith(b"\n"):  # or this line would go on in that one
                    file.truncate(before.rfind(b"\n") + 1)
                file.write(json.dumps(asdict(event)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            say(f"warning: {self._path} does not have `{kind}` at step {step:,}: {error.strerror}")


def read(path: Path) -> list[Event]:
    """All events, [] without the file; a last line that a kill cut short does not count."""
    if not path.is_file():
        return []
    *lines, _cut_short = path.read_text("utf-8", errors="replace").split("\n")
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json_text.parse_object(line, step=int, time=float, kind=str, text=str)
            if row["kind"] not in get_args(Kind):
                raise ValueError(f"'kind' is {row['kind'][:40]!r}")
            found.append(Event(row["step"], row["time"], row["kind"], row["text"]))
        except ValueError as error:
            raise UserError(f"{path}, line {number} is damaged: {error}") from error
    return found

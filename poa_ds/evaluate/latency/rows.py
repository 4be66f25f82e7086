"""latency.jsonl: how long extracted sizes take and where that was measured, only ever appended."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from poa_ds.evaluate.results import lines
from poa_ds.system import json_text
from poa_ds.system.errors import UserError

UNSTEADY = 0.25  # (p90 - p10) / median above which a median says little


@dataclass(frozen=True)
class Place:
    """All that times depend on but the size; times of two places are never compared."""

    device: str  # cpu or cuda
    processor: str  # its model
    cores: int
    threads: int
    backend: str  # torch or onnxruntime, with its version
    batch: int
    precision: str
    crop: int

    def is_here(self) -> bool:
        """Whether it is this machine."""
        import torch  # seconds

        if self.device == "cuda" and not torch.cuda.is_available():
            return False
        return (self.processor, self.cores) == (processor(self.device), os.cpu_count())

    def __str__(self) -> str:
        threads = f", {self.threads} of {self.cores} threads" if self.device == "cpu" else ""
        return (
            f"{self.processor}{threads}, {self.backend}, batch {self.batch}, {self.precision}, "
            f"crop {self.crop}"
        )


@dataclass(frozen=True)
class LatencyRow:
    """One size at one place. Milliseconds of a batch; load: of the machine, at the start."""

    step: int
    size: str
    place: Place
    median: float
    p10: float
    p90: float
    runs: int
    load: float

    @property
    def unsteady(self) -> bool:
        return self.p90 - self.p10 > UNSTEADY * self.median

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "LatencyRow":
        row = json_text.parse_object(line, step=int, size=str, place=dict, runs=int)
        json_text.numbers({name: row[name] for name in ("median", "p10", "p90", "load")})
        own = {field.name: row[field.name] for field in fields(cls)}
        return cls(**own | {"place": Place(**row["place"])})


def processor(device: str) -> str:
    """The model of this machine's CPU or GPU."""
    import torch  # seconds

    if device == "cuda":
        return torch.cuda.get_device_name()
    described = Path("/proc/cpuinfo")
    for line in described.read_text().splitlines() if described.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def read(path: Path) -> list[LatencyRow]:
    """All rows, [] without the file; a last line that a kill cut short does not count."""
    return lines(path, LatencyRow.from_json)


def here(rows: Sequence[LatencyRow], device: str | None = None) -> list[LatencyRow]:
    """Those that were measured on this machine; device: cpu or cuda, None for any."""
    asked = [row for row in rows if device in (None, row.place.device)]
    return [row for row in asked if row.place.is_here()]


def newest(rows: Sequence[LatencyRow], device: str | None = None) -> dict[str, LatencyRow]:
    """Size -> its last row at the place of this machine that was measured last.

    UserError: nothing was measured on this machine.
    """
    found = here(rows, device)
    if not found:
        others = sorted({row.place.processor for row in rows})
        elsewhere = f" (there are latencies of {', '.join(others)})" if others else ""
        raise UserError(
            f"no latency was measured on this machine{elsewhere}: "
            "poa-ds latency RUN --sizes all measures them"
        )
    return {row.size: row for row in found if row.place == found[-1].place}

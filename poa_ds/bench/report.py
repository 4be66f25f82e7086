"""What `bench step` says: the table and the record of a measurement, and of which machine it is."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poa_ds.bench.contenders import Job, Kind, ProcessMemory, Sample
from poa_ds.bench.profile import Profile
from poa_ds.plan.floor import Floor, products, update_bytes

GIB = 2**30
COLUMNS = ("", "median ms", "min", "max", "CPU ms", "images/s", "peak GiB", "first loss")


@dataclass(frozen=True)
class Machine:
    """processor: the device that computes. load: running processes when the measurement ended."""

    processor: str
    cores: int
    threads: int
    torch: str
    deepspeed: str
    load: float
    date: str


def machine(device: str) -> Machine:
    """This machine, now."""
    cuda = device == "cuda"
    return Machine(
        processor=torch.cuda.get_device_name() if cuda else _cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        deepspeed=importlib.metadata.version("deepspeed"),
        load=os.getloadavg()[0],
        date=datetime.date.today().isoformat(),
    )


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


@dataclass(frozen=True)
class Result:
    """One contender's steps: those of the warm-up and the measured ones."""

    warmup: list[Sample]
    steps: list[Sample]
    memory: ProcessMemory
    profile: Profile | None = None

    @property
    def milliseconds(self) -> list[float]:
        return [1000 * sample.seconds for sample in self.steps]

    @property
    def cpu_milliseconds(self) -> float:
        """The median; what other programs do changes it less than the time."""
        return statistics.median(1000 * sample.cpu_seconds for sample in self.steps)


@dataclass(frozen=True)
class Report:
    """A whole measurement, ours first. in_turns: they alternated step by step."""

    arguments: str
    job: Job
    machine: Machine
    results: dict[Kind, Result]
    in_turns: bool

    def table(self) -> str:
        """What the command prints."""
        m, batch = self.machine, self.job.recipe.batch
        stage = self.job.ds_config.get("zero_optimization", {}).get("stage", 0)
        ours, *others = self.results
        first = self.results[ours]
        rows = [
            COLUMNS,
            self._row(f"{ours}, ZeRO stage {stage}", first),
            *(self._row(kind, self.results[kind]) for kind in others),
            *(self._ratios(kind) for kind in others),
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            row[0].ljust(widths[0])
            + "".join(cell.rjust(w + 2) for cell, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        losses = [result.warmup[0].loss for result in self.results.values()]
        apart = (max(losses) - min(losses)) / abs(min(losses))
        order = "in turns" if self.in_turns else "one after the other (memory)"
        return "\n".join(
            [
                f"one training step: {self.arguments}",
                f"slots {batch.slots}, images per slot {batch.images_per_slot}, {self.job.drawn}, "
                f"{self.job.recipe.precision}, "
                f"LayerScale {self.job.recipe.backbone.layer_scale:g}; "
                f"{len(first.steps)} steps of each, {order}",
                f"{m.processor}, cores {m.cores}, threads {m.threads}, load {m.load:.1f}; "
                f"torch {m.torch}, deepspeed {m.deepspeed}; {m.date}",
                "",
                *lines,
                "",
                "Same weights and batch: the first losses differ by "
                f"{apart:.1g} (relative), the gradient norms by {self._norms_apart():.1g}.",
                self._memory_line(),
                "Ratio of the times: median over the pairs of equal steps.",
                *(line for kind, r in self.results.items() for line in _profile(kind, r.profile)),
            ]
        )

    def record(self) -> dict[str, Any]:
        """The same and every single step, for JSON."""
        return {
            "arguments": self.arguments,
            "size": str(self.job.size or "draw"),
            "device": self.job.device,
            "in_turns": self.in_turns,
            "machine": dataclasses.asdict(self.machine),
            "results": {kind: dataclasses.asdict(r) for kind, r in self.results.items()},
            "speed_ratios": {kind: self.speed_ratio(kind) for kind in list(self.results)[1:]},
            "sizes": [[list(map(str, s)) for s in self.job.sizes(n)] for n in self._numbers],
            "floors": [dataclasses.asdict(counted) for counted in self._floors()],
            "deepspeed_config": self.job.ds_config,
            "config": dataclasses.asdict(self.job.recipe),
        }

    @property
    def _numbers(self) -> range:
        """Of the measured steps: each draws sizes of its own."""
        first = len(self._ours.warmup)
        return range(first, first + len(self._ours.steps))

    def _floors(self) -> list[Floor]:
        recipe, update = self.job.recipe, update_bytes(self.job.recipe)
        return [Floor(products(recipe, self.job.sizes(n)), update) for n in self._numbers]

    @property
    def _ours(self) -> Result:
        return next(iter(self.results.values()))

    def speed_ratio(self, kind: Kind) -> float:
        """Time of the other / time of ours, the median over the pairs of equal steps."""
        pairs = zip(self.results[kind].milliseconds, self._ours.milliseconds, strict=True)
        return statistics.median(other / ours for other, ours in pairs)

    def _row(self, name: str, result: Result) -> tuple[str, ...]:
        times, batch = result.milliseconds, self.job.recipe.batch
        middle = statistics.median(times)
        return (
            name,
            f"{middle:.1f}",
            f"{min(times):.1f}",
            f"{max(times):.1f}",
            f"{result.cpu_milliseconds:.1f}",
            f"{1000 * batch.slots * batch.images_per_slot / middle:.4g}",
            f"{result.memory.peak / GIB:.2f}",
            f"{result.warmup[0].loss:.6f}",
        )

    def _ratios(self, kind: Kind) -> tuple[str, ...]:
        other, ours = self.results[kind], self._ours
        cpu = other.cpu_milliseconds / ours.cpu_milliseconds
        memory = other.memory.peak / ours.memory.peak
        speed = f"{self.speed_ratio(kind):.2f}"
        return (f"{kind} / ours", speed, "", "", f"{cpu:.2f}", "", f"{memory:.2f}", "")

    def _norms_apart(self) -> float:
        norms = [result.warmup[0].norms for result in self.results.values()]
        columns = ([found[name] for found in norms] for name in norms[0])
        return max((max(column) - min(column)) / min(column) for column in columns)

    def _memory_line(self) -> str:
        if self.job.device == "cuda":
            return "Peak memory: what the tensors of one process took on the device at most."
        return (
            "Peak memory: resident in one process, of which "
            f"{self._ours.memory.start / GIB:.2f} GiB are the libraries."
        )


def _profile(kind: Kind, found: Profile | None) -> list[str]:
    """The lines about a contender's profile; none where none was taken."""
    if found is None:
        return []
    lines = ["", f"{kind}, per step of {found.steps} under a profiler:"]
    if used := found.device:
        lines += [
            f"{used.launches:,.0f} launches, the host waits {used.waits:.1f} times, "
            f"{used.copies_to_device:.1f} copies to the GPU, which is busy for {used.busy:.1f} ms "
            f"and idle for {used.idle:.1f} ms"
        ]
    width = max((len(o.name) for o in found.operators), default=0)
    lines += [
        f"  {o.name:{width}}{o.milliseconds:>10.2f} ms{o.calls:>8.0f} calls"
        for o in found.operators
    ]
    return lines

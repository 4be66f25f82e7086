"""Where the time of a step goes: launches, waiting for the GPU, an idle GPU, the dearest operators.

torch.profiler records; the arithmetic over what it recorded is here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

STEPS = 3
OPERATORS = 10
SPAN = "one step of the bench"
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
    *("cuStreamSynchronize", "cuCtxSynchronize", "cuEventSynchronize", "cudaMemcpy"),
)


@dataclass(frozen=True)
class Event:
    """Something that was recorded, microseconds. on_device: work of the GPU, not of the host."""

    name: str
    on_device: bool
    start: float
    end: float


@dataclass(frozen=True)
class Operator:
    """An operator without what it calls, per step: of the GPU where there is one."""

    name: str
    milliseconds: float
    calls: float


@dataclass(frozen=True)
class DeviceUse:
    """Per step. busy, idle: milliseconds in which the GPU does something, or nothing at all."""

    launches: float
    waits: float
    copies_to_device: float
    busy: float
    idle: float


@dataclass(frozen=True)
class Profile:
    """Of a few steps, under a profiler, which makes the host slower. device: None on a CPU."""

    steps: int
    device: DeviceUse | None
    operators: list[Operator]


def profiled(step: Callable[[], object], device: str) -> Profile:
    """The profile of STEPS steps."""
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as record:
        for _ in range(STEPS):
            with record_function(SPAN):
                step()
        if cuda:
            torch.cuda.synchronize()
    used = device_use(_events(record)) if cuda else None
    return Profile(STEPS, used, _operators(record, cuda))


def device_use(events: Sequence[Event]) -> DeviceUse:
    """What the events say of the GPU, per span of SPAN on the host.

    The time of the steps lasts from the first span's begin to the end of the last one, or of the
    last work of the GPU. What the host does outside of the spans is not counted.
    """
    spans = [e for e in events if e.name == SPAN and not e.on_device]
    begin = min(e.start for e in spans)
    work = [e for e in events if e.on_device and e.name != SPAN and e.end > begin]
    end = max(e.end for e in (*spans, *work))

    def per_step(names: Iterable[str]) -> float:
        inside = [e for e in events if not e.on_device and e.name in names]
        return sum(any(s.start <= e.start < s.end for s in spans) for e in inside) / len(spans)

    busy = _covered([(max(e.start, begin), e.end) for e in work])
    return DeviceUse(
        launches=per_step(LAUNCHES),
        waits=per_step(WAITS),
        copies_to_device=sum("HtoD" in e.name for e in work) / len(spans),
        busy=busy / len(spans) / 1000,
        idle=(end - begin - busy) / len(spans) / 1000,
    )


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """How much of the line they cover together: streams work side by side."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _events(record: profile) -> list[Event]:
    """Of the profiler. Names that the program gave to stretches of time are no work of the GPU."""
    found = []
    for e in record.events():
        on_device = e.device_type == DeviceType.CUDA
        if not (on_device and e.is_user_annotation):
            found.append(Event(e.name, on_device, e.time_range.start, e.time_range.end))
    return found


def _operators(record: profile, cuda: bool) -> list[Operator]:
    """The dearest first. On a GPU an operator's time is that of the kernels that it launched."""
    rows = [row for row in record.key_averages() if row.key != SPAN and not row.is_user_annotation]
    if cuda:  # kernels have rows of their own, besides the operators that launched them
        rows = [row for row in rows if row.device_type != DeviceType.CUDA]
    spent = [(row.self_device_time_total if cuda else row.self_cpu_time_total, row) for row in rows]
    spent.sort(key=lambda pair: -pair[0])
    return [
        Operator(row.key, time / STEPS / 1000, row.count / STEPS)
        for time, row in spent[:OPERATORS]
        if time > 0
    ]

"""The training steps that `bench step` measures, each in a process of its own.

A process of its own gives each its own peak memory, and lets a network be measured of which two
do not fit into memory. The processes wait for each other, so that steps can alternate.
"""

import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from poa_ds.bench.profile import Profile, profiled
from poa_ds.bench.three_passes.step import ThreePasses
from poa_ds.data.batch import Batch
from poa_ds.data.spec import batch_spec
from poa_ds.data.store.order import MASKS, keyed
from poa_ds.engine import engine
from poa_ds.methods.method import Method, method
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.run.step import Stepper
from poa_ds.system.errors import UserError
from poa_kernels import dispatch

# ours: as the recipe says; three passes: the published way; plain: ours without kernels; compiled:
# those plain functions through torch.compile; triton: every kernel, whatever the table says
Kind = Literal["ours", "three passes", "plain", "compiled", "triton"]
Step = Callable[..., tuple[Tensor, dict]]
SPARE = 1.1  # memory that must be free for another process / the peak of the first


@dataclass(frozen=True)
class OneSize(ElasticSpace):
    """A space that draws the same size in every step."""

    drawn: Subnet | None = None

    def __hash__(self) -> int:
        return super().__hash__()

    def draw(self, step: int, slot: int, **_: object) -> Subnet:
        assert self.drawn
        return self.drawn


@dataclass(frozen=True)
class Job:
    """What both contenders run. size: the elastic one of every step, None draws as the recipe."""

    recipe: Recipe
    ds_config: dict
    size: Subnet | None
    device: str

    @property
    def space(self) -> ElasticSpace:
        space = derived.space(self.recipe)
        if self.size is None:
            return space
        values = {field.name: getattr(space, field.name) for field in dataclasses.fields(space)}
        return OneSize(**values, drawn=self.size)

    def sizes(self, number: int) -> tuple[tuple[Subnet, ...], ...]:
        """The students of each slot of one step."""
        sizes = self.method().sizes
        return tuple(sizes(number, slot) for slot in range(self.recipe.batch.slots))

    def method(self) -> Method:
        """The recipe's, newly made; one that draws sizes draws the given one."""
        found = method(self.recipe)
        if self.size is not None:
            found.space = self.space
        return found

    @property
    def drawn(self) -> str:
        """Which students learn, in words."""
        found = {self.sizes(number) for number in range(16)}
        if self.size is None and len(found) > 1:
            return "elastic size as drawn"
        first, *others = found.pop()[0]
        if len(others) > 1:
            return f"sizes {', '.join(map(str, (first, *others)))}"
        return f"elastic size {others[0]}" if others else f"size {first}"

    def values(self) -> StepValues:
        """Those of the middle of the run, everything switched on."""
        batch, objective = self.recipe.batch, self.recipe.objective
        schedules = derived.schedules(self.recipe, batch.slots * batch.images_per_slot)
        values = schedules.at(schedules.total_steps // 2)
        on = {"last_layer_factor": 1.0, "all_sizes": True}
        return dataclasses.replace(values, ibot_active=objective.ibot > 0, **on)

    def batches(self, number: int) -> list[Batch]:
        """All slots of one step: random crops in their final form, masks as in training."""
        return [self._slot(number, slot) for slot in range(self.recipe.batch.slots)]

    def _slot(self, number: int, slot: int) -> Batch:
        spec = batch_spec(self.recipe)
        crops, images = spec.crops, spec.images_per_slot
        rng = keyed(MASKS, spec.seed, number, slot)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))  # before the masks

        def noise(count: int, side: int) -> Tensor:
            sides = (self.recipe.data.channels, side, side)
            return torch.randn(count * images, *sides, generator=generator)

        masks = spec.masks.draw(2 * images, rng)
        local_crops = noise(crops.local_count, crops.local_size)
        global_crops = noise(2, crops.global_size)
        batch = Batch.of(global_crops, local_crops, masks, step=number, slot=slot)
        return batch.to(self.device)


@dataclass(frozen=True)
class Sample:
    """One measured step. norms: of the gradients before clipping, per module."""

    seconds: float
    cpu_seconds: float
    loss: float
    norms: dict[str, float]


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes. start: before the networks were built. free: for other processes beside this one."""

    start: int
    peak: int
    free: int

    def fits(self, others: int) -> bool:
        """Whether so many more such processes fit beside."""
        return self.free > SPARE * others * self.peak


def build(kind: Kind, job: Job) -> Step:
    """The contender's step: (batches of all slots, values) -> (loss, gradient norms)."""
    own = job.method()
    networks = own.networks()
    if kind == "three passes":
        plain = ThreePasses(job.recipe, job.space, networks.student.state_dict(), job.device)
        return partial(_with_spread, plain.step, plain)
    if kind == "ours":
        dispatch.select(job.recipe.kernels, job.device, compiled=job.recipe.compile)
    else:
        mode = "triton" if kind == "triton" else "reference"
        dispatch.select(mode, job.device, compiled=kind == "compiled")
    trained = engine.Engine(networks, job.recipe.optimizer, job.ds_config)
    stepper = Stepper(job.recipe, trained, own)

    def ours(batches: Sequence[Batch], values: StepValues) -> tuple[Tensor, dict]:
        result = stepper.step(batches, values)
        return result.terms["total"], result.gradient_norms

    return partial(_with_spread, ours, own)


def _with_spread(
    do: Callable[[Sequence[Batch], StepValues], tuple[Tensor, dict]],
    owner: Any,
    batches: Sequence[Batch],
    values: StepValues,
    *,
    spread: bool = True,
) -> tuple[Tensor, dict]:
    """One step of an owner of an objective; without `spread` KoLeo has no weight in it."""
    whole = getattr(owner, "objective", None)  # not every method has one
    if whole is None or spread:
        return do(batches, values)
    owner.objective = dataclasses.replace(whole, koleo=0.0)
    try:
        return do(batches, values)
    finally:
        owner.objective = whole


class Contender:
    """A contender in its own process; a context that ends it."""

    def __init__(self, kind: Kind, job: Job) -> None:
        self.kind = kind
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, kind, job)
        self.process = context.Process(target=_serve, args=arguments, name=kind, daemon=True)
        start_without_interrupts(self.process)
        theirs.close()

    def step(self, number: int, *, spread: bool = True) -> Sample:
        """Step `number`, measured. spread: with KoLeo."""
        return self._ask((number, spread))

    def memory(self) -> ProcessMemory:
        """Of all steps so far."""
        return self._ask("memory")

    def profile(self) -> Profile:
        """Of a few more steps."""
        return self._ask("profile")

    def _ask(self, question: object):
        try:
            self._connection.send(question)
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self.process.join()
            raise UserError(
                f"the process of `{self.kind}` ended with status {self.process.exitcode}: with "
                "-9, or an error about memory above, try a smaller batch.images_per_slot"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join()
        self._connection.close()


def start_without_interrupts(process: BaseProcess) -> None:
    """Start it so that Ctrl-C does nothing in it, from its first import on: its parent ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process inherits it
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, kind: Kind, job: Job) -> None:
    """The contender's process: answers until it is ended."""
    engine.start_processes(job.device)  # both load the same libraries: their memory compares
    start = host_bytes("VmRSS") if job.device == "cpu" else 0
    do, values = build(kind, job), job.values()
    while True:
        question = connection.recv()
        if question == "memory":
            connection.send(_memory(job.device, start))
        elif question == "profile":
            connection.send(profiled(partial(do, job.batches(0), values), job.device))
        else:
            number, spread = question
            measured = partial(do, spread=spread)
            connection.send(measure(measured, job.batches(number), values, job.device))


def measure(do: Step, batches: Sequence[Batch], values: StepValues, device: str) -> Sample:
    """One step of a contender's `build`."""
    _wait(device)
    started, cpu_started = time.perf_counter(), time.process_time()
    loss, norms = do(batches, values)
    _wait(device)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    return Sample(seconds, cpu_seconds, float(loss), {k: float(v) for k, v in norms.items()})


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(device: str, start: int) -> ProcessMemory:
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return ProcessMemory(start, torch.cuda.max_memory_allocated(), free)
    peak, now = host_bytes("VmHWM"), host_bytes("VmRSS")
    free = host_bytes("MemAvailable", Path("/proc/meminfo")) - (peak - now)
    return ProcessMemory(start, peak, free)


def host_bytes(name: str, file: Path = Path("/proc/self/status")) -> int:
    """A line of /proc. Not ru_maxrss: a new process inherits its parent's."""
    lines = (line.split() for line in file.read_text().splitlines())
    return next(int(words[1]) * 1024 for words in lines if words[:1] == [f"{name}:"])

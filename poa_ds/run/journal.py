"""What a run says of itself every `log_every` steps: a row of metrics, a line, and warnings."""

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from tqdm import tqdm

from poa_ds.checkpoint.state import RunState
from poa_ds.recipe import derived
from poa_ds.run.setup import Setup, Step
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.system.events import Events
from poa_ds.system.printable import duration, figure
from poa_ds.track.alarms import Alarms
from poa_ds.track.metrics_file import Row
from poa_ds.track.tracker import Tracker


class Journal:
    """Writes to the tracker and to the terminal; every call on all ranks, inside of its context."""

    def __init__(
        self,
        setup: Setup,
        tracker: Tracker,
        events: Events,
        *,
        first_step: int,
        last_step: int,
        earlier: Iterable[Row] = (),
    ) -> None:
        """earlier: the rows of a run that goes on; what was said of them is not said again."""
        self._recipe, self._engine, self._clock = setup.recipe, setup.engine, setup.clock
        self._space = derived.space(setup.recipe)
        self._tracker, self._events = tracker, events
        self._first_step, self._last_step = first_step, last_step
        self._numbers = setup.numbers
        self._alarms = Alarms(warmup_steps=setup.numbers.warmup_steps)
        for row in earlier:
            self._clock.recall(row)
            if "loss/total" in row:
                self._alarms.judge(row["step"], row)

    def has_row(self, step: int) -> bool:
        """Whether that step is one of those that are written down."""
        return step % self._recipe.log_every == 0 or step == self._last_step

    def write(self, state: RunState, step: Step) -> None:
        """The step that is done: its row, where it has one."""
        self._bar.update()
        if not step.result.applied:
            self._events.append(state.step, "skipped", "not all numbers were finite")
        if not self.has_row(state.step):
            return
        row = self._row(state, step)
        warning = self._clock.warning(row, self._recipe.data.workers)
        own, notices = self._alarms.judge(state.step, row)
        row |= own
        if not dist.is_main():
            return
        for line in filter(None, (warning, *(notice.line for notice in notices))):
            say(line)
        for notice in notices:
            self._events.append(notice.step, notice.kind, notice.text)
        speed = figure(row["speed/images_per_second"])
        self._bar.set_postfix_str(f"loss {row['loss/total']:.3f}, {speed} im/s")
        self._tracker.log(state.step, row)
        if self._bar.disable:
            loss, left = f"loss {row['loss/total']:.4f}", self._left(state.step)
            tell(f"step {state.step:,}: {loss}, {speed} images/s{left}")

    def _left(self, step: int) -> str:
        """How long the run goes on, evaluations and checkpoints counted; empty at its end."""
        if step == self._last_step:
            return ""
        # this step's own, where they are due, come after its line
        evaluations = self._numbers.evaluations_between(step - 1, self._last_step)
        saves = self._numbers.checkpoints_between(step - 1, self._last_step)
        seconds = self._clock.left(self._last_step - step, evaluations, saves)
        return f", {duration(seconds)} left"

    def _row(self, state: RunState, step: Step) -> dict[str, float]:
        result, values = step.result, step.values
        means = result.means()
        costs = sum(map(self._space.cost, result.sizes))
        cost = dist.on_host(dist.all_sum(torch.tensor(costs, device=self._engine.device)))
        row = {
            **{name: means[name] for name in result.health},
            **{f"loss/{name}": means[name] for name in result.terms},
            **{f"gradient_norm/{name}": value for name, value in result.gradient_norms.items()},
            "schedule/lr": values.lr,
            "schedule/weight_decay": values.weight_decay,
            "schedule/momentum": values.momentum,
            "schedule/teacher_temperature": values.teacher_temperature,
            "size/width": result.sizes[0].width,
            "size/depth": sum(result.sizes[0].stages),
            "size/mean_cost": cost / self._recipe.batch.slots,
            "skipped_total": float(state.skipped),
            **self._clock.take(),
        }
        scale = self._engine.loss_scale
        return row if scale is None else row | {"loss_scale": scale}

    def __enter__(self) -> Self:
        hidden = not (dist.is_main() and sys.stderr.isatty())
        first, last = self._first_step, self._last_step
        self._bar = tqdm(total=last, initial=first, desc="training", unit="step", disable=hidden)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

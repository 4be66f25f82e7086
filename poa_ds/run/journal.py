"""What a run says of itself every `log_every` steps: a row of metrics, warnings, and a line.

In a log there is one line in 10 seconds at most after the first hundred.
"""

import time
from collections.abc import Iterable

import torch

from poa_ds.checkpoint.state import RunState
from poa_ds.recipe import derived
from poa_ds.run.screen import Screen
from poa_ds.run.setup import Setup, Step
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.system.events import Events
from poa_ds.system.printable import duration, figure
from poa_ds.track.alarms import Alarms
from poa_ds.track.metrics_file import Row
from poa_ds.track.tracker import Tracker
from poa_kernels.compiled import news

LINES_AT_ANY_PACE = 100  # of a start: short runs have them all
LEAST_SECONDS = 10.0  # between two lines from then on; metrics.jsonl has every row


class Lines:
    """How often a log gets a line: it stays readable however quick the steps are."""

    def __init__(self) -> None:
        self._left, self._since = LINES_AT_ANY_PACE, 0.0

    def due(self, *, last: bool) -> bool:
        """Whether the next one is printed; the last one always is."""
        now = time.monotonic()
        if not last and self._left <= 0 and now - self._since < LEAST_SECONDS:
            return False
        self._left, self._since = self._left - 1, now
        return True


class Journal:
    """Writes to the tracker and to the terminal; every call on all ranks."""

    def __init__(
        self,
        setup: Setup,
        tracker: Tracker,
        events: Events,
        screen: Screen,
        *,
        last_step: int,
        earlier: Iterable[Row] = (),
    ) -> None:
        """earlier: the rows of a run that goes on; what was said of them is not said again."""
        self._recipe, self._engine, self._clock = setup.recipe, setup.engine, setup.clock
        self._space = derived.space(setup.recipe)
        self._tracker, self._events, self._screen = tracker, events, screen
        self._last_step = last_step
        self._numbers, self._lines = setup.numbers, Lines()
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
        self._screen.step(state.step)
        if not step.result.applied:
            self._events.append(state.step, "skipped", "not all numbers were finite")
        if dist.is_main() and (compiled := news()):
            tell(f"step {state.step:,}: {compiled}")
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
        self._tracker.log(state.step, row)
        seconds, of_evaluations = self._left(state.step)
        self._screen.row(
            row | {"step": state.step},
            seconds_left=seconds,
            evaluation_seconds_left=of_evaluations,
        )
        last = state.step == self._last_step
        if not self._screen.replaces_lines and self._lines.due(last=last):
            left = "" if last else f", {duration(seconds)} left"
            tell(f"step {state.step:,}: {in_a_log(row)}{left}")

    def _left(self, step: int) -> tuple[float, float]:
        """Seconds that the run goes on, evaluations and checkpoints counted; of evaluations."""
        # this step's own, where they are due, come after its line
        evaluations = self._numbers.evaluations_between(step - 1, self._last_step)
        saves = self._numbers.checkpoints_between(step - 1, self._last_step)
        seconds = self._clock.left(self._last_step - step, evaluations, saves)
        return seconds, evaluations * self._clock.evaluation_seconds

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
        if result.online and (labelled := dist.on_host(result.online.labelled)):
            row["online/top1"] = 100 * dist.on_host(result.online.right) / labelled
        scale = self._engine.loss_scale
        return row if scale is None else row | {"loss_scale": scale}


def in_a_log(row: Row) -> str:
    """What a log says of a row of metrics."""
    norms = [x for name, x in row.items() if name.startswith("gradient_norm/")]
    wait = 100 * row["speed/data_wait_ms"] / row["speed/step_ms"]
    memory = row.get("memory/device_gib", row["memory/host_gib"])
    return (
        f"loss {row['loss/total']:.4f}, lr {row['schedule/lr']:.3g}, "
        f"grad {' / '.join(f'{x:.2g}' for x in norms)}, "
        f"{figure(row['speed/images_per_second'])} images/s, data wait {wait:.0f} %, "
        f"memory {memory:.1f} GiB"
    )

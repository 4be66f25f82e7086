"""What a run says of itself every `log_every` steps: a row of metrics, a line, and warnings."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

from poa_ds.checkpoint.state import RunState
from poa_ds.engine.engine import Engine
from poa_ds.recipe import derived
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.run.clock import Clock
from poa_ds.run.step import StepResult
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.track.alarms import Alarms
from poa_ds.track.metrics_file import Row
from poa_ds.track.tracker import Tracker


class Journal:
    """Writes to the tracker and to the terminal; every call on all ranks."""

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        tracker: Tracker | None,
        *,
        warmup_steps: int,
        earlier: Iterable[Row] = (),
    ) -> None:
        """earlier: the rows of a run that goes on; what was said of them is not said again."""
        self._recipe, self._engine, self._tracker = recipe, engine, tracker
        self._space = derived.space(recipe)
        self._alarms = Alarms(warmup_steps=warmup_steps)
        for row in earlier:
            if "loss/total" in row:
                self._alarms.judge(row["step"], row)

    def write(
        self, state: RunState, result: StepResult, values: StepValues, clock: Clock, bar: tqdm
    ) -> None:
        """The row of the step that is done."""
        row = self._row(state, result, values, clock)
        warning = clock.warning(row, self._recipe.data.workers)
        own, alarms = self._alarms.judge(state.step, row)
        row |= own
        if not dist.is_main():
            return
        for line in filter(None, (warning, *alarms)):
            say(line)
        speed = f"{row['speed/images_per_second']:.0f}"
        bar.set_postfix_str(f"loss {row['loss/total']:.3f}, {speed} im/s")
        if self._tracker:
            self._tracker.log(state.step, row)
        if bar.disable:
            loss = f"loss {row['loss/total']:.4f}"
            tell(f"step {state.step:,}: {loss}, {speed} images/s")

    def _row(
        self, state: RunState, result: StepResult, values: StepValues, clock: Clock
    ) -> dict[str, float]:
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
            **clock.take(),
        }
        scale = self._engine.loss_scale
        return row if scale is None else row | {"loss_scale": scale}

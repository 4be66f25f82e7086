"""The accuracy of a fine-tuning along the way, on images with labels: what `eval finetune` reads.

Rows in the run's own evaluations.jsonl; the network itself is kept at the end alone.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from poa_ds.checkpoint import deployed
from poa_ds.evaluate import results
from poa_ds.evaluate.features import Readout
from poa_ds.evaluate.finetune import rows as of_runs
from poa_ds.evaluate.finetune.accuracy import Counts, counted
from poa_ds.evaluate.finetune.images import measured_on
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.methods import finetune
from poa_ds.recipe import derived
from poa_ds.run.evaluations import waited_for
from poa_ds.run.setup import Setup
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.tracker import Tracker


class Accuracies:
    """What Evaluations is to a training without labels; arguments as there. rows: of k-NN, none."""

    def __init__(
        self,
        setup: Setup,
        tracker: Tracker,
        *,
        first_step: int | None,
        between_batches: Callable[[], None],
    ) -> None:
        self.setup, self.recipe, self.tracker = setup, setup.recipe, tracker
        self.between_batches = between_batches
        self.rows: list[KnnRow] = []
        self.files = RunFolder(Path(self.recipe.output_dir))
        if dist.is_main():
            last = -1 if first_step is None else first_step
            results.keep_through(self.files.evaluations, last, ScoreRow.from_json)
        dist.barrier()
        self.measured = {row.step for row in of_runs.own(self.files)}
        self.measures = bool(self.recipe.evaluation.queries)
        if self.measures:
            options = self.recipe.evaluation
            folder = setup.open_folder(options.queries)
            self.asked = measured_on(folder, setup.folder, drop=options.drop_unknown_classes)
            self.readout = Readout.of(self.recipe, setup.engine.device)

    def due(self, step: int) -> bool:
        """Whether this step ends with an evaluation; the last one always does."""
        every, last = self.setup.numbers.evaluation_steps, self.setup.numbers.steps
        return step == last or bool(every and step % every == 0)

    def owes(self, step: int) -> bool:
        """Whether the evaluation after this step is missing: a run may have been stopped in it."""
        if not step or not self.due(step):
            return False
        there = step in self.measured if self.measures else self.files.teacher(step).exists()
        return not dist.broadcast_object(there)  # the same answer everywhere

    def evaluate(self, step: int) -> None:
        """Measure the network that the method leaves; at the end also keep it."""
        tensors = self.setup.engine.deployed()
        if dist.is_main() and step == self.setup.numbers.steps:
            deployed.publish(self.files.path, tensors, self.recipe, step)
        if not self.measures:
            return
        start = time.perf_counter()
        network = finetune.network(self.recipe)
        network.load_state_dict(tensors)
        found = counted(
            network.eval().to(self.readout.device),
            self.asked,
            self.recipe.evaluation,
            self.readout,
            batches=self._batches,
        )
        seconds = time.perf_counter() - start
        self.setup.clock.evaluation_seconds = seconds
        self._tell(step, found, seconds)
        self.measured.add(step)

    def _batches(self, items: Iterable, *, total: int, label: str, unit: str) -> Iterator:
        wrapped = partial(waited_for, items, self.between_batches, self.setup.engine.device)
        yield from wrapped(total=total, label=label, unit=unit)

    def _tell(self, step: int, found: Counts, seconds: float) -> None:
        values = {"finetune/top1": found.top1, "finetune/mean_per_class": found.mean_per_class}
        self.tracker.log(step, values | {"speed/evaluation_seconds": seconds})
        if not dist.is_main():
            return
        if found.damaged:
            say(
                f"warning: {found.damaged} damaged images of {self.asked.folder.path} are replaced"
                " by others in the evaluation"
            )
        size = derived.space(self.recipe).intact
        tell(f"top-1 at step {step:,}: {found.top1:.2f} % ({seconds:.1f} s)")
        for row in of_runs.of_counts(step, str(size), found, self.recipe, seconds):
            results.append(self.files.evaluations, row)

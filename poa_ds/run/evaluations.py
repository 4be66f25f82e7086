"""The k-NN curves of a run: evaluates the teacher along the way, keeps it, and tells everybody."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from poa_ds.checkpoint import deployed
from poa_ds.evaluate import results
from poa_ds.evaluate.features import Readout, random_weights
from poa_ds.evaluate.knn import answers, raw_pixel_floor, right_row
from poa_ds.evaluate.knn_protocol import KnnProtocol
from poa_ds.evaluate.neighbours import Answers
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.right import RightRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.run.setup import Setup
from poa_ds.system import dist
from poa_ds.system.console import tell
from poa_ds.system.progress import LOG_SECONDS, progress
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import Floors
from poa_ds.track.tracker import Tracker

BACKBONE = "backbone."


class Evaluations:
    """Evaluations during training, on all ranks. queries empty: only the teacher is kept.

    first_step: the step that a resumed run goes on with; None for a new run, to which nothing
    belongs that another one left in its folder. between_batches: called between the batches of an
    evaluation, equally often on all ranks; it may raise.
    """

    def __init__(
        self,
        setup: Setup,
        tracker: Tracker,
        *,
        first_step: int | None,
        between_batches: Callable[[], None],
    ) -> None:
        self.recipe, self.engine, self.tracker = setup.recipe, setup.engine, tracker
        self.numbers, recipe = setup.numbers, setup.recipe
        self.clock = setup.clock
        self.between_batches, self.resumed = between_batches, first_step is not None
        self.output = Path(recipe.output_dir)
        self.subnets = derived.space(recipe).select(recipe.evaluation.sizes)
        self.path = RunFolder(self.output).knn
        if dist.is_main():
            last = -1 if first_step is None else first_step
            results.keep_through(RunFolder(self.output).right, last, RightRow.from_json)
            results.keep_through(RunFolder(self.output).evaluations, last, ScoreRow.from_json)
            results.keep_through(self.path, last)
        dist.barrier()
        self.rows = results.read(self.path)
        if recipe.evaluation.queries:
            queries = setup.open_folder(recipe.evaluation.queries)
            bank = setup.open_folder(recipe.evaluation.bank or recipe.data.train)
            self.protocol = KnnProtocol.of(bank, queries, recipe.evaluation)
            self.readout = Readout.of(recipe, setup.engine.device)
            self.protocol.say_doubts()

    def due(self, step: int) -> bool:
        """Whether this step ends with an evaluation; the last one always does."""
        every = self.numbers.evaluation_steps
        return step == self.numbers.steps or bool(every and step % every == 0)

    def owes(self, step: int) -> bool:
        """Whether the evaluation after this step is missing: a run may have been stopped in it."""
        if not (self.due(step) if step else self.recipe.evaluation.at_start):
            return False
        if self.recipe.evaluation.queries:
            there = any(row.step == step for row in self.rows)
        else:
            there = self.resumed and RunFolder(self.output).teacher(step).exists()
        return not dist.broadcast_object(there)  # the same answer everywhere

    def evaluate(self, step: int) -> None:
        """Keep the teacher of this step, and measure the sizes that the recipe names."""
        tensors = self.engine.deployed()
        if dist.is_main():
            deployed.publish(self.output, tensors, self.recipe, step)
        if not self.recipe.evaluation.queries:
            return
        start = time.perf_counter()
        if dist.is_main() and not self.rows:
            images = len(self.protocol.bank.rows) + len(self.protocol.queries.rows)
            tell(f"step {step:,}: k-NN of {len(self.subnets):,} sizes by {images:,} images begins")
        model = backbone(self.recipe)
        model.load_state_dict(
            {n.removeprefix(BACKBONE): t for n, t in tensors.items() if n.startswith(BACKBONE)}
        )
        answered, how = self._answers(model), self.protocol.record(self.readout.precision)
        measured = {subnet: of_size.percent() for subnet, of_size in answered.items()}
        pixels, random = self._floors(measured, how, step)
        row = KnnRow.of(step, how, measured, raw_pixels=pixels, random_weights=random)
        self.clock.evaluation_seconds = time.perf_counter() - start
        self._tell(step, row, measured, self.clock.evaluation_seconds)
        self.rows.append(row)
        if dist.is_main():  # last: what is in this file is not measured again
            report_k = self.recipe.evaluation.report_k
            results.append(RunFolder(self.output).right, right_row(step, how, report_k, answered))
            results.append(self.path, row)

    def _answers(self, model: ElasticBackbone) -> dict[Subnet, Answers]:
        model = model.to(self.readout.device)
        return answers(model, self.subnets, self.protocol, self.readout, progress=self._batches)

    def _floors(self, measured: dict, how: dict, step: int) -> tuple[dict, dict]:
        """(raw pixels, random weights), as they were measured before in the same way.

        The sizes at step 0 are the second, unless the run starts from other weights. Where another
        protocol had it, it is measured anew.
        """
        before = [row for row in self.rows if row.raw_pixels]
        for row in before:
            if row.protocol == how:
                space, random = derived.space(self.recipe), row.random_weights
                return dict(row.raw_pixels), {space.parse(s): by_k for s, by_k in random.items()}
        if before and dist.is_main():
            tell("k-NN is measured in another way than before: its floors are measured anew")
        pixels = raw_pixel_floor(self.protocol, self.readout, progress=self._batches)
        if step == 0 and not self.recipe.start:
            return pixels, measured
        if step and not any(row.random_weights for row in before):
            return pixels, {}
        untrained = self._answers(random_weights(self.recipe))
        return pixels, {subnet: of_size.percent() for subnet, of_size in untrained.items()}

    def _batches(self, items: Iterable, *, total: int, label: str, unit: str) -> Iterator:
        """The batches of this rank, as `waited_for`."""
        yield from waited_for(
            items,
            self.between_batches,
            self.engine.device,
            total=total,
            label=label,
            unit=unit,
        )

    def _tell(self, step: int, row: KnnRow, measured: dict, seconds: float) -> None:
        k = self.recipe.evaluation.report_k
        random = {
            s: row.random_weights[str(s)][k] for s in measured if str(s) in row.random_weights
        }
        floors = Floors(pixels=row.raw_pixels[k], random=random)
        table = results.table(row)
        self.tracker.log_knn(step, measured, floors, row.protocol, table=table)
        self.tracker.log(step, {"speed/evaluation_seconds": seconds})
        if dist.is_main():
            top1 = {size: values[k] for size, values in measured.items()}
            low, high = min(top1, key=top1.get), max(top1, key=top1.get)
            tell(
                f"k-NN at step {step:,} (k = {k}, {len(top1)} sizes, {seconds:.1f} s): "
                f"{top1[low]:.1f} % ({low}) to {top1[high]:.1f} % ({high}); "
                f"raw pixels {floors.pixels:.1f} %"
            )


def waited_for(
    items: Iterable,
    between_batches: Callable[[], None],
    device: torch.device,
    *,
    total: int,
    label: str,
    unit: str,
) -> Iterator:
    """The batches of this rank; ranks that have fewer wait here for the others."""
    most = int(dist.all_max(torch.tensor(total, device=device)))
    if dist.is_main():
        items = progress(items, total=total, label=label, unit=unit, every=LOG_SECONDS)
    for item in items:
        yield item
        between_batches()
    for _ in range(most - total):
        between_batches()

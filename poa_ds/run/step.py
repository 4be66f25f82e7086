"""One optimizer step of any method: from the batches of this rank's slots to moved networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.data.spec import photometric_spec
from poa_ds.data.store.order import slot_positions
from poa_ds.engine.engine import Engine, Update
from poa_ds.methods.method import Method
from poa_ds.model.space import Subnet
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.run import online
from poa_ds.run.online import PREFIX, Answered, Probe
from poa_ds.system import dist
from poa_ds.system.console import say


@dataclass(frozen=True)
class StepResult:
    """terms: unweighted, averaged over the slots of this rank, and `total`, as optimised.

    sizes: the elastic size of each slot of this rank. stop: a rank asks for it. health: the
    method's figures about the first of the slots, where they were asked for. online: of the probe,
    where it learnt.
    """

    terms: dict[str, Tensor]
    sizes: list[Subnet]
    gradient_norms: dict[str, float]
    finite: bool
    applied: bool
    stop: bool
    health: dict[str, Tensor] = field(default_factory=dict)
    online: Answered | None = None

    def means(self) -> dict[str, float]:
        """Terms averaged over all slots of all ranks, health over the ranks. A collective."""
        values = self.terms | self.health
        names = list(values)
        means = dist.all_sum(torch.stack([values[n].float() for n in names]))
        return dict(zip(names, dist.on_host(means / dist.world_size()), strict=True))


class Stepper:
    """Trains on batches. state: the method's tensors beside the parameters, saved with them.

    probe: what learns beside the training, from the targets of a method that is `Showing`.
    """

    def __init__(
        self, recipe: Recipe, engine: Engine, method: Method, probe: Probe | None = None
    ) -> None:
        self.recipe, self.engine, self.method, self.probe = recipe, engine, method, probe
        self.photometric = photometric_spec(recipe)
        self.state: dict[str, Tensor] = {}

    def step(
        self,
        batches: Sequence[Batch],
        values: StepValues,
        *,
        stop: Callable[[], bool] = lambda: False,
        examine: bool = False,
    ) -> StepResult:
        """One optimizer step on the batches of this rank's slots.

        stop: whether this rank asks all to stop, looked up as late as possible. examine: with the
        method's figures.
        """
        engine, method = self.engine, self.method
        batches = [b.to(engine.device).augmented(self.photometric) for b in batches]
        targets, state = method.targets(engine.forward, batches, values, self.state)
        figures = method.figures(targets[0]) if examine else {}
        terms = [self._learn(b, t, values) for b, t in zip(batches, targets, strict=True)]
        by_name = {name: torch.stack([slot[name] for slot in terms]) for name in terms[0]}
        finite = torch.stack([t.isfinite().all() for t in by_name.values()]).all()
        parts = {"last_layer": values.last_layer_factor}
        update = Update(values.lr, values.weight_decay, values.momentum, parts)
        report = engine.step(update, finite=finite, stop=stop())
        answered = None
        if report.applied:
            self.state = state
            answered = self._probe(batches, targets)
        last = -1 if values.all_sizes else 0
        sizes = [method.sizes(b.step, b.slot)[last] for b in batches]
        if not report.finite:
            self._name_the_culprit(batches, sizes, by_name, report.gradient_norms)
        means = {name: slots.mean() for name, slots in by_name.items()}
        norms = report.gradient_norms
        return StepResult(
            means, sizes, norms, report.finite, report.applied, report.stop, figures, answered
        )

    def _probe(self, batches: Sequence[Batch], targets: Sequence[Any]) -> Answered | None:
        """The probe's step, where there is one; a collective."""
        if self.probe is None or not self.probe.learns_in(batches[0].step):
            return None
        return self.probe.learn(*online.rows(self.method, batches, targets))

    def saved(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the parameters: of the method, and of the probe."""
        return self.state | (self.probe.state() if self.probe else {})

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from there; a probe of which nothing was saved begins anew."""
        of_probe = {name: t for name, t in saved.items() if name.startswith(PREFIX)}
        self.state = {name: t for name, t in saved.items() if name not in of_probe}
        if self.probe and of_probe:
            self.probe.restore(of_probe)

    def _learn(self, batch: Batch, target: Any, values: StepValues) -> dict[str, Tensor]:
        """Forward and backward of all students on one slot; the detached total and terms."""
        total, terms = self.engine.forward(
            lambda networks: self.method.loss(networks, batch, target, values)
        )
        self.engine.backward(total)
        return {"total": total.detach(), **terms}

    def elastic(self, step: int, slot: int) -> Subnet:
        """The size that a slot trains in a step besides the intact one; of several, the last."""
        return self.method.sizes(step, slot)[-1]

    def details(self, step: int) -> str:
        """What this rank trains in that step, for messages of faults."""
        batch = self.recipe.batch
        own = batch.slots // dist.world_size()
        slots = range(dist.rank() * own, (dist.rank() + 1) * own)
        sizes = ", ".join(str(self.elastic(step, slot)) for slot in slots)
        first = slot_positions(step, slots.start, batch.images_per_slot, batch.slots).start
        last = first + own * batch.images_per_slot - 1
        return f"sub-networks {sizes}, images {first:,} to {last:,} of the run"

    def _name_the_culprit(
        self,
        batches: Sequence[Batch],
        sizes: Sequence[Subnet],
        terms: dict[str, Tensor],
        norms: dict[str, float],
    ) -> None:
        """Say which slots of this rank had losses that are not finite, or which gradients."""
        said = []
        for i, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            bad = [f"{n} is {v[i].item()}" for n, v in terms.items() if not v[i].isfinite()]
            said += [f"slot {batch.slot}, size {size}: {', '.join(bad)}"] if bad else []
        bad = [f"the gradient of the {n} is {x}" for n, x in norms.items() if not isfinite(x)]
        if dist.is_main() and bad and not said:  # they are the same on all ranks
            said = [f"sizes {', '.join(map(str, sizes))}: {', '.join(bad)}"]
        for what in said:
            say(
                f"rank {dist.rank()}: step {batches[0].step + 1:,} skipped, not all numbers are "
                f"finite: {what}"
            )

"""One optimizer step, from the batches of this rank's slots to a moved student and teacher."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.data.spec import photometric_spec
from poa_ds.data.store.order import DROP_PATH, keyed, slot_positions
from poa_ds.engine.engine import Engine
from poa_ds.methods import health
from poa_ds.methods import poa as branches
from poa_ds.methods.poa import Assignments, Branch, LossTerms, Poa
from poa_ds.model import build as backbones
from poa_ds.model.heads import HeadBank
from poa_ds.model.shape import shape
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist


def student_and_teacher(recipe: Recipe) -> Poa:
    """The two networks of a recipe, with the same weights, which follow from its seed alone."""

    def heads() -> HeadBank:
        options = recipe.heads
        return HeadBank(
            shape(recipe).features(derived.space(recipe).intact),
            options.prototypes,
            hidden=options.hidden,
            bottleneck=options.bottleneck,
            layers=options.layers,
            init=options.init,
        )

    def branch() -> Branch:
        own = heads() if recipe.heads.separate_ibot else None
        return Branch(backbones.backbone(recipe), heads(), own)

    torch.manual_seed(recipe.seed)
    return Poa(branch(), branch())


@dataclass(frozen=True)
class StepResult:
    """terms: unweighted, averaged over the slots of this rank, and `total`, as optimised.

    sizes: the elastic size of each slot of this rank. stop: a rank asks for it. health: figures of
    the teacher on the first of the slots, where they were asked for.
    """

    terms: dict[str, Tensor]
    sizes: list[Subnet]
    gradient_norms: dict[str, float]
    finite: bool
    applied: bool
    stop: bool
    health: dict[str, Tensor] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Terms averaged over all slots of all ranks, health over the ranks. A collective."""
        values = self.terms | self.health
        names = list(values)
        means = dist.all_sum(torch.stack([values[n].float() for n in names]))
        return dict(zip(names, (means / dist.world_size()).tolist(), strict=True))


class Stepper:
    """Trains on batches. centers: the running centres of softmax targets, empty with Sinkhorn."""

    def __init__(self, recipe: Recipe, engine: Engine) -> None:
        self.recipe, self.engine = recipe, engine
        self.space = derived.space(recipe)
        self.photometric = photometric_spec(recipe)
        self.centers: dict[str, Tensor] = {}

    def step(
        self,
        batches: Sequence[Batch],
        values: StepValues,
        *,
        stop: Callable[[], bool] = lambda: False,
        examine: bool = False,
    ) -> StepResult:
        """One optimizer step on the batches of this rank's slots.

        stop: whether this rank asks all to stop, looked up as late as possible. examine: with
        figures of the teacher's health.
        """
        engine, ibot = self.engine, values.ibot_active and self.recipe.objective.ibot > 0
        batches = [b.to(engine.device).augmented(self.photometric) for b in batches]
        projections = [
            engine.forward(
                lambda poa, b=b: branches.teach(poa.teacher, b, self.space.intact, ibot=ibot)
            )
            for b in batches
        ]
        centers = dict(self.centers)
        assignments = self._assign(projections, values.teacher_temperature, centers)
        found = _examine(assignments[0]) if examine else {}
        sizes = [self.draw(b.step, b.slot) for b in batches]
        losses = [
            self._learn(b, a, size, ibot=ibot)
            for b, a, size in zip(batches, assignments, sizes, strict=True)
        ]
        stacked = {name: torch.stack([slot[name] for slot in losses]) for name in losses[0]}
        finite = torch.stack([t.isfinite().all() for t in stacked.values()]).all()
        report = engine.step(values, finite=finite, stop=stop())
        if report.applied:
            self.centers = centers
        if not report.finite:
            self._name_the_culprit(batches, sizes, stacked, report.gradient_norms)
        terms = {name: slots.mean() for name, slots in stacked.items()}
        norms = report.gradient_norms
        return StepResult(terms, sizes, norms, report.finite, report.applied, report.stop, found)

    def details(self, step: int) -> str:
        """What this rank trains in that step, for messages of faults."""
        batch = self.recipe.batch
        own = batch.slots // dist.world_size()
        slots = range(dist.rank() * own, (dist.rank() + 1) * own)
        sizes = ", ".join(str(self.draw(step, slot)) for slot in slots)
        first = slot_positions(step, slots.start, batch.images_per_slot, batch.slots).start
        last = first + own * batch.images_per_slot - 1
        return f"sub-networks {sizes}, images {first:,} to {last:,} of the run"

    def _assign(
        self,
        projections: Sequence[branches.Projections],
        temperature: float,
        centers: dict[str, Tensor],
    ) -> list[Assignments]:
        objective = self.recipe.objective
        if objective.centering == "softmax":
            return branches.center(projections, temperature, centers)
        iterations = objective.sinkhorn_iterations
        return branches.balance(projections, temperature, iterations=iterations)

    def draw(self, step: int, slot: int) -> Subnet:
        """The elastic size that a slot trains in a step."""
        recipe = self.recipe
        return self.space.draw(
            step,
            slot,
            seed=recipe.seed,
            slots=recipe.batch.slots,
            policy=recipe.draws,
        )

    def _learn(
        self, batch: Batch, assignments: Assignments, elastic: Subnet, *, ibot: bool
    ) -> dict[str, Tensor]:
        """Forward and backward of both students on one slot; the detached terms and total."""
        recipe, subnets = self.recipe, (self.space.intact, elastic)
        objective = recipe.objective
        # of the step and slot alone: any rank that gets this slot keeps the same sequences
        rng = keyed(DROP_PATH, recipe.seed, batch.step, batch.slot)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        terms: list[LossTerms] = []

        def work(poa: Poa) -> Tensor:
            backbone = poa.student.backbone
            crops = [c for c in (batch.global_crops, batch.local_crops) if len(c)]
            kept = backbone.draw_kept(
                backbone.packing(crops),
                subnets,
                recipe.backbone.drop_path,
                generator,
                self.engine.device,
            )
            temperature = objective.student_temperature
            found = branches.poa_terms(
                poa.student,
                batch,
                assignments,
                subnets,
                ibot=ibot,
                kept=kept,
                student_temperature=temperature,
            )
            terms.append(found)
            return found.total(
                intact_weight=objective.intact_weight,
                dino=objective.dino,
                ibot=objective.ibot,
                koleo=objective.koleo,
            )

        total = self.engine.forward(work)
        self.engine.backward(total)
        return {"total": total.detach(), **terms[0].detached()}

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
            print(
                f"rank {dist.rank()}: step {batches[0].step + 1:,} skipped, not all numbers are "
                f"finite: {what}",
                file=sys.stderr,
                flush=True,
            )


def _examine(slot: Assignments) -> dict[str, Tensor]:
    heads = range(len(slot.cls_biases))
    tokens = slot.projections.tokens
    assert tokens is not None
    return health.figures(tokens, map(slot.cls_targets, heads))

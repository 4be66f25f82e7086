"""One optimizer step, from the batches of this rank's slots to a moved student and teacher."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poa_ds import backbones, branches, dist
from poa_ds import config as recipes
from poa_ds.branches import Assignments, Branch, LossTerms, Poa
from poa_ds.config import Config
from poa_ds.data.batch import Batch
from poa_ds.data.order import DROP_PATH, keyed, slot_positions
from poa_ds.data.spec import photometric_spec
from poa_ds.engine import Engine
from poa_ds.heads import HeadBank
from poa_ds.schedules import StepValues
from poa_ds.shapes import shape
from poa_ds.space import Subnet


def student_and_teacher(config: Config) -> Poa:
    """The two networks of a recipe, with the same weights, which follow from its seed alone."""

    def heads() -> HeadBank:
        recipe = config.heads
        return HeadBank(
            shape(config).features(recipes.space(config).intact),
            recipe.prototypes,
            hidden=recipe.hidden,
            bottleneck=recipe.bottleneck,
            layers=recipe.layers,
            init=recipe.init,
        )

    def branch() -> Branch:
        own = heads() if config.heads.separate_ibot else None
        return Branch(backbones.backbone(config), heads(), own)

    torch.manual_seed(config.seed)
    return Poa(branch(), branch())


@dataclass(frozen=True)
class StepResult:
    """terms: unweighted, averaged over the slots of this rank, and `total`, as optimised.

    sizes: the elastic size of each slot of this rank. stop: a rank asks for it.
    """

    terms: dict[str, Tensor]
    sizes: list[Subnet]
    gradient_norms: dict[str, float]
    finite: bool
    applied: bool
    stop: bool

    def global_terms(self) -> dict[str, float]:
        """The terms averaged over all slots of all ranks. A collective."""
        names = list(self.terms)
        means = dist.all_sum(torch.stack([self.terms[n].float() for n in names]))
        return dict(zip(names, (means / dist.world_size()).tolist(), strict=True))


class Stepper:
    """Trains on batches. centers: the running centres of softmax targets, empty with Sinkhorn."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.space = recipes.space(config)
        self.photometric = photometric_spec(config)
        self.centers: dict[str, Tensor] = {}

    def step(
        self,
        batches: Sequence[Batch],
        values: StepValues,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> StepResult:
        """One optimizer step on the batches of this rank's slots.

        stop: whether this rank asks all to stop, looked up as late as possible.
        """
        engine, ibot = self.engine, values.ibot_active and self.config.objective.ibot > 0
        batches = [b.to(engine.device).augmented(self.photometric) for b in batches]
        projections = [
            engine.forward(
                lambda poa, b=b: branches.teach(poa.teacher, b, self.space.intact, ibot=ibot)
            )
            for b in batches
        ]
        centers = dict(self.centers)
        assignments = self._assign(projections, values.teacher_temperature, centers)
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
            self._name_the_culprit(batches, sizes, stacked)
        terms = {name: slots.mean() for name, slots in stacked.items()}
        return StepResult(
            terms, sizes, report.gradient_norms, report.finite, report.applied, report.stop
        )

    def details(self, step: int) -> str:
        """What this rank trains in that step, for messages of faults."""
        batch = self.config.batch
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
        objective = self.config.objective
        if objective.centering == "softmax":
            return branches.center(projections, temperature, centers)
        iterations = objective.sinkhorn_iterations
        return branches.balance(projections, temperature, iterations=iterations)

    def draw(self, step: int, slot: int) -> Subnet:
        """The elastic size that a slot trains in a step."""
        config = self.config
        return self.space.draw(
            step,
            slot,
            seed=config.seed,
            slots=config.batch.slots,
            policy=config.draws,
        )

    def _learn(
        self, batch: Batch, assignments: Assignments, elastic: Subnet, *, ibot: bool
    ) -> dict[str, Tensor]:
        """Forward and backward of both students on one slot; the detached terms and total."""
        config, subnets = self.config, (self.space.intact, elastic)
        objective = config.objective
        # of the step and slot alone: any rank that gets this slot keeps the same sequences
        rng = keyed(DROP_PATH, config.seed, batch.step, batch.slot)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        terms: list[LossTerms] = []

        def work(poa: Poa) -> Tensor:
            backbone = poa.student.backbone
            crops = [c for c in (batch.global_crops, batch.local_crops) if len(c)]
            kept = backbone.draw_kept(
                backbone.packing(crops),
                subnets,
                config.backbone.drop_path,
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
        self, batches: Sequence[Batch], sizes: Sequence[Subnet], terms: dict[str, Tensor]
    ) -> None:
        for i, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            bad = {n: v[i].item() for n, v in terms.items() if not v[i].isfinite()}
            what = ", ".join(f"{n} is {v}" for n, v in bad.items()) or "the losses are finite"
            print(
                f"rank {dist.rank()}: step {batch.step} skipped, not all numbers are finite: "
                f"slot {batch.slot}, size {size}: {what}",
                file=sys.stderr,
                flush=True,
            )

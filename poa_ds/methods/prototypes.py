"""DINO, iBOT and KoLeo: students and teacher are compared by their scores of prototypes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods import health, targets
from poa_ds.methods.method import State
from poa_ds.methods.targets import Assignments
from poa_ds.methods.terms import Terms, slot_terms
from poa_ds.model.backbone import DropPath
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank, PrototypeHead
from poa_ds.model.layers import scale_inputs
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe


class Prototypes:
    """Heads, targets and terms of POA's objective (docs/method.md 4 and 5)."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.objective = recipe, recipe.objective

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        student, teacher = self._branch(), self._branch()
        if self.recipe.heads.elastic == "own":
            student.part_heads()
        return Networks(student, teacher, leaves=[PrototypeHead])

    def _branch(self) -> Branch:
        own = self._heads() if self.recipe.heads.separate_ibot else None
        return Branch(backbone(self.recipe), self._heads(), own)

    def _heads(self) -> HeadBank:
        options = self.recipe.heads
        heads = HeadBank(
            derived.shape(self.recipe).features(derived.space(self.recipe).intact),
            options.prototypes,
            hidden=options.hidden,
            bottleneck=options.bottleneck,
            layers=options.layers,
            init=options.init,
        )
        scale_inputs(heads, self.recipe.backbone.input_scale)
        return heads

    def _ibot(self, values: StepValues) -> bool:
        return values.ibot_active and self.objective.ibot > 0

    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
        intact: Subnet,
    ) -> tuple[list[Assignments], State]:
        """state: the running centres of softmax targets, empty with Sinkhorn."""
        ibot = self._ibot(values)
        shown = [
            forward(lambda networks, b=b: targets.teach(networks.teacher, b, intact, ibot=ibot))
            for b in batches
        ]
        temperature, centers = values.teacher_temperature, dict(state)
        if self.objective.centering == "softmax":
            return targets.center(shown, temperature, centers), centers
        iterations = self.objective.sinkhorn_iterations
        return targets.balance(shown, temperature, iterations=iterations), centers

    def terms(
        self,
        networks: Networks,
        batch: Batch,
        target: Assignments,
        subnets: Sequence[Subnet],
        values: StepValues,
        *,
        drop_path: DropPath | None,
        imitates: bool,
    ) -> Terms:
        return slot_terms(
            networks.student,
            batch,
            target,
            subnets,
            ibot=self._ibot(values),
            temperature=self.objective.student_temperature,
            drop_path=drop_path,
            imitates=imitates,
            koleo_students=self.objective.koleo_students,
        )

    def features(self, target: Assignments) -> Tensor:
        tokens = target.projections.tokens
        assert tokens is not None
        return tokens

    def figures(self, target: Assignments) -> dict[str, Tensor]:
        heads = map(target.cls_targets, range(len(target.cls_biases)))
        return health.figures(self.features(target), heads)

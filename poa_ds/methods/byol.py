"""BYOL's comparison: a student predicts the teacher's projection of another view of the image.

No prototypes, and nothing depends on the other images of a batch. A slimmable network with this
objective has public code (US3L), with batch norms in the heads; layer norms in their place, all
widths and all crops as they are here are ours (docs/methods/dspnet.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods import health
from poa_ds.methods.method import State
from poa_ds.methods.pairing import CROPS, count, met
from poa_ds.model.backbone import DropPath, ElasticBackbone
from poa_ds.model.layers import scale_inputs
from poa_ds.model.normed_mlp import NormedMlp
from poa_ds.model.projector import unit
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Objective, Recipe


class Teacher(nn.Module):
    """Backbone and projector."""

    def __init__(self, own: ElasticBackbone, projector: NormedMlp) -> None:
        super().__init__()
        self.backbone, self.projector = own, projector


class Student(Teacher):
    """With a predictor, which has no average."""

    def __init__(self, own: ElasticBackbone, projector: NormedMlp, predictor: NormedMlp) -> None:
        super().__init__(own, projector)
        self.predictor = predictor


@dataclass(frozen=True)
class Shown:
    """What the teacher says of the global crops of B images.

    views (2, B, D): its unit projections. tokens (2B, C): its class tokens.
    """

    views: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Terms:
    """Unweighted terms of n students: byol (n,) towards the teacher, imitation (n - 1,) of the
    others towards the intact one, (0,) where it has no weight.
    """

    byol: Tensor
    imitation: Tensor

    def total(
        self, weights: Sequence[float], objective: Objective, *, imitation: float = 1.0
    ) -> Tensor:
        """What is optimised: weights[k] x (terms of student k)."""
        own, *others = self.byol
        if len(self.imitation):
            others = [x + imitation * i for x, i in zip(others, self.imitation, strict=True)]
        return sum(w * x for w, x in zip(weights, [own, *others], strict=True))

    def detached(self) -> dict[str, Tensor]:
        """By their names in metrics; those of a second elastic student are elastic2_byol, ..."""
        found = {}
        for k, term in enumerate(self.byol):
            number = str(k) if k > 1 else ""
            found[f"elastic{number}_byol" if k else "intact_byol"] = term
            if k and len(self.imitation):
                found[f"imitation{number}"] = self.imitation[k - 1]
        return {name: x.detach() for name, x in found.items()}


class Byol:
    """Networks, targets and terms. The keys of `heads` say how wide the layers are."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        student = Student(backbone(self.recipe), self._projector(), self._predictor())
        teacher = Teacher(backbone(self.recipe), self._projector())
        return Networks(student, teacher, leaves=[NormedMlp])

    def _projector(self) -> NormedMlp:
        options = self.recipe.heads
        dim = derived.shape(self.recipe).features(derived.space(self.recipe).intact)
        hidden = [options.hidden] * (options.layers - 1)
        return self._mlp(dim, *hidden, options.bottleneck)

    def _predictor(self) -> NormedMlp:
        options = self.recipe.heads
        return self._mlp(options.bottleneck, options.hidden, options.bottleneck)

    def _mlp(self, *widths: int) -> NormedMlp:
        made = NormedMlp(*widths, init=self.recipe.heads.init)
        scale_inputs(made, self.recipe.backbone.input_scale)
        return made

    @torch.no_grad()
    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
        intact: Subnet,
    ) -> tuple[list[Shown], State]:
        """state: none."""
        return [forward(lambda networks, b=b: _shown(networks, b, intact)) for b in batches], state

    def terms(
        self,
        networks: Networks,
        batch: Batch,
        target: Shown,
        subnets: Sequence[Subnet],
        values: StepValues,
        *,
        drop_path: DropPath | None,
        imitates: bool,
    ) -> Terms:
        crops = [c for c in (batch.global_crops, batch.local_crops) if len(c)]
        own, student = networks.backbone, networks.student
        streams = own.streams(crops, subnets, [None] * len(crops), drop_path)
        # copies: a view would keep all tokens
        rows = [torch.cat([tokens[:, 0] for tokens in stream]) for stream in streams]
        predicted = unit(student.predictor(student.projector(*rows)))
        shape = {"students": len(streams), "images": batch.size}
        q = rearrange(predicted, "(students views images) d -> students views images d", **shape)
        byol = torch.stack([apart(each, target.views) for each in q])
        copied = [(2 - 2 * (each * q[0].detach()).sum(-1)).mean() for each in q[1:] if imitates]
        return Terms(byol, torch.stack(copied) if copied else byol[:0])

    def features(self, target: Shown) -> Tensor:
        return target.tokens

    def figures(self, target: Shown) -> dict[str, Tensor]:
        """projection_std: spread of the projections, as feature_std is of the features."""
        return {
            "health/feature_std": health.feature_std(target.tokens),
            "health/effective_rank": health.effective_rank(target.tokens),
            "health/projection_std": health.feature_std(target.views.flatten(0, 1)),
        }


def apart(q: Tensor, z: Tensor) -> Tensor:
    """Mean of 2 - 2 cos over the pairs of a view of the student and another one of the teacher.

    Unit rows q (V, B, D) of the student's views, z (2, B, D) of the teacher's, the first two alike.
    """
    # a product is linear in the target: all crops that a view meets in one
    towards = torch.stack([sum(z[crop] for crop in met(view)) for view in range(len(q))])
    return 2 - 2 * (q * towards).sum() / (count(len(q)) * q.shape[1])


def _shown(networks: Networks, batch: Batch, intact: Subnet) -> Shown:
    teacher = networks.teacher
    cls = teacher.backbone(batch.global_crops, intact)[:, 0].clone()  # not all tokens
    rows = unit(teacher.projector(cls))
    return Shown(rearrange(rows, "(crops images) d -> crops images d", crops=CROPS), cls)

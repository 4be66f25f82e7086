"""SEED: students learn whom a frozen teacher finds similar. After arXiv 2101.04731; docs/methods.

The teacher is a network from a file. Elastic students (the intact one and a drawn one, both towards
the same targets), both global crops as rows of their own, and AdamW are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from poa_ds.data.batch import Batch
from poa_ds.engine.networks import Networks
from poa_ds.methods import frozen, health, seed_loss, stochastic_depth
from poa_ds.methods.frozen import Embedder, Frozen
from poa_ds.methods.method import State
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.layers import scale_inputs
from poa_ds.model.projector import Projector, unit
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUEUE, TEACHER = "queue", "teacher_sha256"


class Student(nn.Module):
    def __init__(self, own: ElasticBackbone, projector: Projector) -> None:
        super().__init__()
        self.backbone, self.projector = own, projector


@dataclass(frozen=True)
class Embeddings:
    """What the teacher says of one slot: unit rows (2B, D) of the global crops, their mean
    neighbours (2B, D), and the queue (K, D) that they were compared with.
    """

    own: Tensor
    mean: Tensor
    queue: Tensor


class Seed:
    """State: `queue`, the last K embeddings of the teacher, the newest last, and its sha256."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.space, self.options = recipe, derived.space(recipe), recipe.distill
        self.embedder: Embedder | None = None

    @cached_property
    def teacher(self) -> Frozen:
        return frozen.find(self.options.teacher, self.recipe.crops.global_size)

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        own = backbone(self.recipe)
        dim, out, init = own.feature_width(self.space.intact), self.teacher.width, self.recipe.heads
        projector = Projector(dim, out, hidden=self.options.hidden, init=init.init)
        scale_inputs(projector, self.recipe.backbone.input_scale)
        return Networks(Student(own, projector), leaves=[Projector])

    def sizes(self, step: int, slot: int) -> tuple[Subnet, ...]:
        """The intact student, and a drawn one if there are smaller sizes."""
        recipe, intact = self.recipe, self.space.intact
        if self.space.menu() == [intact]:
            return (intact,)
        slots, policy = recipe.batch.slots, recipe.draws
        return intact, self.space.draw(step, slot, seed=recipe.seed, slots=slots, policy=policy)

    @torch.no_grad()
    def targets(
        self,
        forward: Callable[[Callable[[Networks], Any]], Any],
        batches: Sequence[Batch],
        values: StepValues,
        state: State,
    ) -> tuple[list[Embeddings], State]:
        """All slots are compared with the queue of the steps before; then the first crop of each
        image enters it, slot by slot, and the oldest leave.
        """
        teach = self._at_work(batches[0].global_crops.device)
        state = state or self._start(teach)
        known = state[TEACHER]
        if known is not teach.digest and not torch.equal(known, teach.digest):
            raise UserError(
                f"{frozen.KEY} {self.options.teacher}: {self.teacher.weights} is not the file that"
                f" this run was begun with, or {frozen.ABOUT} beside it is not; give"
                " that one (RUN/teacher/stepN names one of a run that goes on), or another"
                " output_dir for a new run"
            )
        queue, temperature = state[QUEUE], self.options.teacher_temperature
        found = []
        for batch in batches:
            own = teach(batch.global_crops)
            mean = seed_loss.mean_neighbour(own, own, queue, temperature)
            found.append(Embeddings(own, mean, queue))
        firsts = [e.own[: b.size] for e, b in zip(found, batches, strict=True)]
        entering = dist.all_rows(torch.cat(firsts))
        return found, {QUEUE: torch.cat((queue[len(entering) :], entering)), TEACHER: teach.digest}

    def _at_work(self, device: torch.device) -> Embedder:
        if self.embedder is None:
            pixels, dtype = self.recipe.augmentation, TYPES[self.recipe.precision]
            if dist.is_main():
                side = self.recipe.crops.global_size
                say(f"teacher: {self.teacher.described(side, dtype)}")
            self.embedder = Embedder(
                self.teacher, pixels.mean, pixels.std, dtype=dtype, device=device
            )
        return self.embedder

    def _start(self, teach: Embedder) -> State:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        rows = torch.randn(self.options.queue, self.teacher.width, generator=generator)
        return {QUEUE: unit(rows).to(teach.digest.device), TEACHER: teach.digest}

    def loss(
        self, networks: Networks, batch: Batch, target: Embeddings, values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        subnets, crops = self.sizes(batch.step, batch.slot), [batch.global_crops]
        own = networks.backbone
        drops = stochastic_depth.draw(self.recipe, own, batch, crops, subnets)
        streams = own.streams(crops, subnets, [None], drops)
        # clones: a view would keep all tokens
        z = networks.student.projector(*[tokens[:, 0].clone() for [tokens] in streams])
        students = z.split(len(target.own))
        terms = [self._towards(student, target.mean, target) for student in students]
        named = dict(zip(("intact_seed", "elastic_seed"), terms, strict=False))
        weights = (self.recipe.objective.intact_weight,)
        weights = (*weights, 1 - weights[0]) if len(terms) > 1 else (1.0,)
        total = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        if self.options.imitation and len(terms) > 1:
            whole, s = students[0].detach(), self.options.student_temperature
            mean = seed_loss.mean_neighbour(whole, target.own, target.queue, s)
            named["imitation"] = self._towards(students[1], mean, target)
            total = total + weights[1] * self.options.imitation * named["imitation"]
        named["cosine"] = (students[0] * target.own).sum(-1).mean()
        return total, {name: x.detach() for name, x in named.items()}

    def _towards(self, z: Tensor, mean: Tensor, target: Embeddings) -> Tensor:
        temperature = self.options.student_temperature
        return seed_loss.towards(z, target.own, mean, target.queue, temperature).mean()

    def figures(self, target: Embeddings) -> dict[str, Tensor]:
        """neighbour_entropy: of the teacher's similarities, as a share of the largest; own_nearest:
        share of the rows that none in the queue is as near to as themselves.
        """
        t, own = self.options.teacher_temperature, target.own
        p = seed_loss.probabilities(own, own, target.queue, t)
        return {
            "health/neighbour_entropy": health.target_entropy(p),
            "health/own_nearest": (p.argmax(1) == 0).float().mean(),
            "health/teacher_std": health.feature_std(own),
        }

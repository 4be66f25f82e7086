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
from poa_ds.model.projector import Projector, Straight, unit
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UserError

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUEUE, LOCAL_QUEUE, TEACHER = "queue", "local_queue", "teacher_sha256"


class Student(nn.Module):
    def __init__(self, own: ElasticBackbone, projector: Projector | Straight) -> None:
        super().__init__()
        self.backbone, self.projector = own, projector


@dataclass(frozen=True)
class Embeddings:
    """What the teacher says of crops (R) of one slot: their unit rows (R, D), their mean neighbours
    (R, D), and the queue (K, D) that they were compared with. alike (R, N, N): how it finds the
    patches of a crop alike, or None.
    """

    own: Tensor
    mean: Tensor
    queue: Tensor
    alike: Tensor | None = None


class Seed:
    """State: `queue`, the last K embeddings of the teacher, the newest last, and its sha256; of
    local crops `local_queue`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.space, self.options = recipe, derived.space(recipe), recipe.distill
        self.embedder: Embedder | None = None

    @cached_property
    def teacher(self) -> Frozen:
        return frozen.of_recipe(self.recipe)

    @property
    def _queues(self) -> tuple[str, ...]:
        """One for each kind of crops: global, local."""
        return (QUEUE, LOCAL_QUEUE) if self.options.local else (QUEUE,)

    def _crops(self, batch: Batch) -> list[Tensor]:
        return [batch.global_crops, batch.local_crops][: len(self._queues)]

    def networks(self) -> Networks:
        torch.manual_seed(self.recipe.seed)
        own = backbone(self.recipe)
        projector = self.head(own)
        scale_inputs(projector, self.recipe.backbone.input_scale)
        return Networks(Student(own, projector), leaves=[type(projector)])

    def head(self, own: ElasticBackbone) -> Projector | Straight:
        """A new one for this student."""
        dim, out, hidden = (
            own.feature_width(self.space.intact),
            self.teacher.width,
            self.options.hidden,
        )
        return (
            Projector(dim, out, hidden=hidden, init=self.recipe.heads.init)
            if hidden
            else Straight(dim, out)
        )

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
    ) -> tuple[list[tuple[Embeddings, ...]], State]:
        """All slots are compared with the queue of the steps before; then the first crop of each
        image enters it, slot by slot, and the oldest leave. Local crops have a queue of their own.
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
        temperature, found, after = self.options.teacher_temperature, [], {TEACHER: teach.digest}
        for batch in batches:
            of_slot = []
            for name, crops in zip(self._queues, self._crops(batch), strict=True):
                own, alike = self._embedded(teach, crops, name)
                mean = seed_loss.mean_neighbour(own, own, state[name], temperature)
                of_slot.append(Embeddings(own, mean, state[name], alike))
            found.append(tuple(of_slot))
        for kind, name in enumerate(self._queues):
            firsts = [e[kind].own[: b.size] for e, b in zip(found, batches, strict=True)]
            entering = dist.all_rows(torch.cat(firsts))
            after[name] = torch.cat((state[name][len(entering) :], entering))
        return found, after

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

    def _embedded(self, teach: Embedder, crops: Tensor, queue: str) -> tuple[Tensor, Tensor | None]:
        """(rows, how patches are alike); the latter of global crops, where it has a weight."""
        if not self.options.patches or queue != QUEUE:
            return teach(crops), None
        own, patches = teach.both(crops)
        return own, seed_loss.alike(patches).exp()

    def _start(self, teach: Embedder) -> State:
        generator = torch.Generator().manual_seed(self.recipe.seed)
        shape, found = (self.options.queue, self.teacher.width), {TEACHER: teach.digest}
        for name in self._queues:
            rows = torch.randn(shape, generator=generator)
            found[name] = unit(rows).to(teach.digest.device)
        return found

    def loss(
        self,
        networks: Networks,
        batch: Batch,
        target: tuple[Embeddings, ...],
        values: StepValues,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        subnets, crops = self.sizes(batch.step, batch.slot), self._crops(batch)
        own = networks.backbone
        drops = stochastic_depth.draw(self.recipe, own, batch, crops, subnets)
        streams = own.streams(crops, subnets, [None] * len(crops), drops)
        # copies: a view would keep all tokens
        rows = [torch.cat([tokens[:, 0] for tokens in stream]) for stream in streams]
        views = [len(e.own) for e in target]
        students = [z.split(views) for z in networks.student.projector(*rows).split(sum(views))]
        means = [e.mean for e in target]
        terms = [self._towards(student, means, target) for student in students]
        named = dict(zip(("intact_seed", "elastic_seed"), terms, strict=False))
        weights = (self.recipe.objective.intact_weight,)
        weights = (*weights, 1 - weights[0]) if len(terms) > 1 else (1.0,)
        total = sum(weight * term for weight, term in zip(weights, terms, strict=True))
        if self.options.imitation and len(terms) > 1:
            s = self.options.student_temperature
            pairs = zip(students[0], target, strict=True)
            means = [seed_loss.mean_neighbour(z.detach(), e.own, e.queue, s) for z, e in pairs]
            named["imitation"] = self._towards(students[1], means, target)
            total = total + weights[1] * self.options.imitation * named["imitation"]
        if (alike := target[0].alike) is not None:
            whole = [stream[0][:, 1:] for stream in streams]  # of global crops
            apart = [seed_loss.patches_apart(patches, alike) for patches in whole]
            named |= dict(zip(("intact_patches", "elastic_patches"), apart, strict=False))
            both = sum(weight * term for weight, term in zip(weights, apart, strict=True))
            total = total + self.options.patches * both
        named["cosine"] = (students[0][0] * target[0].own).sum(-1).mean()
        return total, {name: x.detach() for name, x in named.items()}

    def _towards(
        self, student: Sequence[Tensor], means: Sequence[Tensor], target: Sequence[Embeddings]
    ) -> Tensor:
        """The mean over all views of one student's rows, kind by kind, towards these means."""
        s = self.options.student_temperature
        kinds = zip(student, means, target, strict=True)
        return torch.cat([seed_loss.towards(z, e.own, m, e.queue, s) for z, m, e in kinds]).mean()

    def figures(self, target: tuple[Embeddings, ...]) -> dict[str, Tensor]:
        """Of the global crops. neighbour_entropy: of the teacher's similarities, as a share of the
        largest; own_nearest: share of the rows that none in the queue is as near to as themselves.
        """
        t, own = self.options.teacher_temperature, target[0].own
        p = seed_loss.probabilities(own, own, target[0].queue, t)
        return {
            "health/neighbour_entropy": health.target_entropy(p),
            "health/own_nearest": (p.argmax(1) == 0).float().mean(),
            "health/teacher_std": health.feature_std(own),
        }

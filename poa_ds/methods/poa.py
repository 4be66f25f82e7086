"""One step of the three branches: teacher targets of all slots first, then the terms per slot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.data.batch import Batch
from poa_ds.methods import losses
from poa_ds.methods.losses import RowTerms, Scores, Targets
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.heads import HeadBank, score
from poa_ds.model.layers import Kept
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_kernels.dispatch import choose
from poa_kernels.prototype_ce import OPERATOR, Target, prototype_ce
from poa_kernels.prototype_ce_chunks import finely, is_large, rows_at_a_time


class Branch(nn.Module):
    """Backbone and heads of one network, student or teacher.

    ibot_heads: heads of their own for patch tokens; None: `heads` serve both kinds of tokens.
    """

    def __init__(
        self, backbone: ElasticBackbone, heads: HeadBank, ibot_heads: HeadBank | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.heads, self.ibot_heads = backbone, heads, ibot_heads

    def project(
        self, cls_rows: Sequence[Tensor], patch_rows: Sequence[Tensor], *, ibot: bool
    ) -> "Projections":
        """Head outputs of one or two streams: class rows (R, C) and patch rows (M, C) of each.

        Every head is entered once (lockstep under ZeRO-3).
        """
        if self.ibot_heads is None or not ibot:
            pairs = zip(cls_rows, patch_rows, strict=True)
            outputs = self.heads(*[torch.cat(pair) for pair in pairs])
            sizes = [len(x) for pair in zip(cls_rows, patch_rows, strict=True) for x in pair]
            cls, patches = [], []
            for z, _ in outputs:
                parts = z.split(sizes)
                cls.append(torch.cat(parts[0::2]))
                patches.append(torch.cat(parts[1::2]))
            prototypes = tuple(w for _, w in outputs)
            return Projections(tuple(cls), tuple(patches), prototypes, prototypes)
        cls_out, patch_out = self.heads(*cls_rows), self.ibot_heads(*patch_rows)
        return Projections(
            tuple(z for z, _ in cls_out),
            tuple(z for z, _ in patch_out),
            tuple(w for _, w in cls_out),
            tuple(w for _, w in patch_out),
        )


@dataclass(frozen=True)
class Projections:
    """Per head: unit bottleneck rows of class (R, D) and masked patch (M, D) tokens, prototypes.

    tokens (R, C): the teacher's class tokens themselves.
    """

    cls: tuple[Tensor, ...]
    patches: tuple[Tensor, ...]
    cls_prototypes: tuple[Tensor, ...]
    patch_prototypes: tuple[Tensor, ...]
    tokens: Tensor | None = None

    @property
    def prototypes(self) -> tuple[Tensor, ...]:
        """Of the class tokens under all heads, then of the patches under all heads."""
        return self.cls_prototypes + self.patch_prototypes

    def for_scores(self) -> "Projections":
        """The same at the precision that the teacher's scores are made of, on every way."""
        found = {id(x): finely(x) for x in self.cls + self.patches + self.prototypes}
        kinds = (self.cls, self.patches, self.cls_prototypes, self.patch_prototypes)
        return Projections(*[tuple(found[id(x)] for x in kind) for kind in kinds], self.tokens)

    def scores(self, part: slice = slice(None)) -> Iterator[Tensor]:
        """Scores of a part of the rows under all `prototypes`: (rows, K) each, made when asked."""
        rows = self.cls + self.patches
        return (F.linear(z[part], w) for z, w in zip(rows, self.prototypes, strict=True))

    def parts(self) -> Iterator[slice]:
        """The rows, cut so that the scores of one part are small."""
        size = rows_at_a_time(max(map(len, self.prototypes)))
        longest = max(map(len, self.cls + self.patches))
        return (slice(first, first + size) for first in range(0, max(longest, 1), size))


@dataclass(frozen=True)
class Assignments:
    """The teacher's targets of one slot, kept as bottleneck rows and a bias per prototype.

    The 256 numbers of a row are kept, its K probabilities are made when a head is at work.
    """

    projections: Projections
    cls_biases: tuple[Tensor, ...]
    patch_biases: tuple[Tensor, ...]
    temperature: float

    @torch.no_grad()
    def targets(self, head: int) -> Targets:
        """The probabilities of one head: (2, B, K) and (M, K)."""
        p, t = self.projections, self.temperature
        patches = score(p.patches[head], p.patch_prototypes[head])
        return Targets(
            self.cls_targets(head).unflatten(0, (2, -1)),
            losses.targets(patches, t, self.patch_biases[head]),
        )

    @torch.no_grad()
    def cls_targets(self, head: int) -> Tensor:
        """The probabilities (2B, K) of one head for the class tokens alone."""
        p = self.projections
        cls = score(p.cls[head], p.cls_prototypes[head])
        return losses.targets(cls, self.temperature, self.cls_biases[head])


@torch.no_grad()
def teach(teacher: Branch, batch: Batch, intact: Subnet, *, ibot: bool) -> Projections:
    """The teacher's head outputs for one slot: global crops without masks, the intact network."""
    tokens = teacher.backbone(batch.global_crops, intact)
    patches = tokens[:, 1:].flatten(0, 1)[_masked(batch, ibot)]
    cls = tokens[:, 0].clone()  # a view would keep all tokens
    shown = teacher.project([cls], [patches], ibot=ibot).for_scores()
    return replace(shown, tokens=cls)


@torch.no_grad()
def balance(
    slots: Sequence[Projections], temperature: float, *, iterations: int = 3
) -> list[Assignments]:
    """Sinkhorn-Knopp over the slots of all ranks, per head and kind of token."""

    def passes() -> Iterator[Iterator[Tensor]]:
        return (slot.scores(part) for slot in slots for part in slot.parts())

    prototypes = [len(w) for w in slots[0].prototypes]
    biases = losses.sinkhorn_biases(passes, prototypes, temperature, iterations)
    return _assignments(slots, temperature, biases)


@torch.no_grad()
def center(
    slots: Sequence[Projections], temperature: float, centers: dict[str, Tensor]
) -> list[Assignments]:
    """Softmax targets around running centres; `centers` then takes in this step's mean scores.

    centers: "cls.<head>" and "patches.<head>" -> (K,), missing ones start at zero. The mean is
    over the slots of the mean over each slot's rows (the published one: over ranks), momentum
    0.9; a step uses the centre of the steps before it.
    """
    heads = len(slots[0].cls_prototypes)
    names = [f"{kind}.{head}" for kind in ("cls", "patches") for head in range(heads)]
    for name, w in zip(names, slots[0].prototypes, strict=True):
        centers.setdefault(name, torch.zeros(len(w), device=w.device))
    biases = [losses.centering_bias(centers[name], temperature) for name in names]
    sums, counts = [torch.zeros_like(centers[n]) for n in names], torch.zeros(len(names))
    for slot in slots:
        for i, scores in enumerate(slot.scores()):
            if len(scores):
                sums[i] += scores.float().mean(0)
                counts[i] += 1
    counts = dist.all_sum(counts.to(sums[0].device))
    totals = dist.all_sum(torch.cat(sums)).split([len(s) for s in sums])
    for name, total, count in zip(names, totals, counts, strict=True):
        old = centers[name]
        centers[name] = torch.where(count > 0, old * 0.9 + total / count.clamp_min(1) * 0.1, old)
    return _assignments(slots, temperature, biases)


def _assignments(
    slots: Sequence[Projections], temperature: float, biases: Sequence[Tensor]
) -> list[Assignments]:
    heads = len(slots[0].cls_prototypes)
    cls, patches = tuple(biases[:heads]), tuple(biases[heads:])
    return [Assignments(slot, cls, patches, temperature) for slot in slots]


@dataclass(frozen=True)
class LossTerms:
    """Unweighted terms, each a scalar averaged over the heads; `total` is what is optimised."""

    intact_dino: Tensor
    intact_ibot: Tensor
    elastic_dino: Tensor
    elastic_ibot: Tensor
    imitation: Tensor
    koleo: Tensor

    def total(
        self, *, intact_weight: float, dino: float = 1.0, ibot: float = 1.0, koleo: float = 0.1
    ) -> Tensor:
        """intact_weight (lambda) x intact + (1 - lambda) x elastic + koleo (REFERENCE.md 5)."""
        intact = dino * self.intact_dino + ibot * self.intact_ibot
        elastic = dino * self.elastic_dino + ibot * self.elastic_ibot + self.imitation
        return intact_weight * intact + (1 - intact_weight) * elastic + koleo * self.koleo

    def detached(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name).detach() for f in fields(self)}


def poa_terms(
    student: Branch,
    batch: Batch,
    assignments: Assignments,
    subnets: tuple[Subnet, Subnet],
    *,
    ibot: bool,
    kept: Sequence[tuple[tuple[Kept, Kept] | None, ...]] | None = None,
    student_temperature: float = 0.1,
) -> LossTerms:
    """The terms of one slot. subnets: (intact, elastic). kept: see ElasticBackbone.streams."""
    crops, masks = [batch.global_crops], [batch.masks if ibot else None]
    if len(batch.local_crops):
        crops.append(batch.local_crops)
        masks.append(None)
    streams = student.backbone.streams(crops, subnets, masks, kept)
    # rows of each stream: 2B global, then LB local class tokens; M masked patches
    cls_rows = [torch.cat([tokens[:, 0] for tokens in stream]) for stream in streams]
    patch_rows = [stream[0][:, 1:].flatten(0, 1)[_masked(batch, ibot)] for stream in streams]
    projections = student.project(cls_rows, patch_rows, ibot=ibot)
    weights = batch.mask_weights if ibot else batch.mask_weights[:0]
    means = cross_entropies(projections, assignments, batch.size, weights, student_temperature)
    global_cls = [rows[: 2 * batch.size] for rows in cls_rows]
    koleo = sum(losses.koleo(crop) for rows in global_cls for crop in rows.chunk(2)) / 2
    return LossTerms(*means, koleo)


def cross_entropies(
    projections: Projections,
    assignments: Assignments,
    size: int,
    patch_weights: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    """(5,): dino and ibot of the intact, of the elastic student, imitation; means over the heads.

    size: B. patch_weights (M,): 1 / masked patches of that crop.
    """
    per_head = []
    for head in range(len(projections.cls)):
        if _by_rows(projections, head):
            rows = _row_terms(projections, assignments, head, size, temperature)
            per_head.append(rows.stacked(size, patch_weights))
            continue
        intact, elastic = _student_scores(projections, head, size)
        targets = assignments.targets(head)
        terms = [
            *losses.match(intact, targets, patch_weights, temperature),
            *losses.match(elastic, targets, patch_weights, temperature),
            losses.imitate(elastic, intact, temperature),
        ]
        per_head.append(torch.stack(terms))
    return torch.stack(per_head).mean(0)


def _masked(batch: Batch, ibot: bool) -> Tensor:
    return batch.mask_indices if ibot else batch.mask_indices[:0]


def _student_scores(p: Projections, head: int, size: int) -> list[Scores]:
    """The scores of the intact and of the elastic student under one head."""
    cls = score(p.cls[head], p.cls_prototypes[head])
    patches = score(p.patches[head], p.patch_prototypes[head])
    both = zip(cls.chunk(2), _halves(patches), strict=True)
    views = 2 * size
    return [
        Scores(c[:views].unflatten(0, (2, -1)), c[views:].unflatten(0, (-1, size)), m)
        for c, m in both
    ]


def _by_rows(p: Projections, head: int) -> bool:
    """Whether the cross-entropies are made without all scores in memory."""
    pairs = ((p.cls, p.cls_prototypes), (p.patches, p.patch_prototypes))
    large = any(is_large(rows[head], prototypes[head]) for rows, prototypes in pairs)
    return large or choose(OPERATOR, p.cls[head]) == "triton"


def _row_terms(
    p: Projections, a: Assignments, head: int, size: int, temperature: float
) -> RowTerms:
    """All cross-entropies under one head; neither logits nor probabilities outlive a kernel."""
    t, (z, w) = a.projections, (p.cls[head], p.cls_prototypes[head])
    views, device = len(z) // 2, z.device
    row = torch.arange(views, device=device, dtype=torch.int32)
    image = row % size
    # a global row meets the other crop, a local row both
    other = torch.where(row < size, image + size, image)
    second = torch.where(row < 2 * size, -1, image + size)
    teacher = torch.stack((other, second), 1).to(torch.int32).repeat(2, 1)
    intact = torch.cat((torch.full_like(row, -1), row))[:, None]
    targets = (
        Target(t.cls[head], t.cls_prototypes[head], a.temperature, a.cls_biases[head], teacher),
        Target(z[:views].detach(), w.detach(), temperature, None, intact),
    )
    cls = prototype_ce(z, w, targets, temperature).unflatten(0, (2, views))

    z, w, masked = p.patches[head], p.patch_prototypes[head], len(t.patches[head])
    same = torch.arange(masked, device=device, dtype=torch.int32).repeat(2)[:, None]
    bias = a.patch_biases[head]
    target = Target(t.patches[head], t.patch_prototypes[head], a.temperature, bias, same)
    patches = prototype_ce(z, w, (target,), temperature)
    return RowTerms(cls, patches.view(2, masked))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    half = len(x) // 2  # chunk(2) of no rows is one piece
    return x[:half], x[half:]


class Poa(nn.Module):
    """Student and teacher as one module, so that one engine shards both.

    forward(work) runs work(self): every use of the parameters passes the root's hooks.
    """

    def __init__(self, student: Branch, teacher: Branch) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        teacher.load_state_dict(student.state_dict())
        teacher.requires_grad_(False)

    def forward(self, work):
        return work(self)

    def pairs(self) -> Mapping[str, tuple[nn.Parameter, nn.Parameter]]:
        """Name -> (student parameter, teacher parameter)."""
        teacher = dict(self.teacher.named_parameters())
        return {name: (p, teacher[name]) for name, p in self.student.named_parameters()}

"""The loss terms of one slot: any number of students, the first of which is the intact one."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from einops import rearrange
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.methods import losses, pairing
from poa_ds.methods.losses import Scores
from poa_ds.methods.targets import Assignments, masked
from poa_ds.model.backbone import DropPath
from poa_ds.model.branch import Branch, Projections
from poa_ds.model.heads import score
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Objective
from poa_kernels.dispatch import choose
from poa_kernels.prototype_ce import OPERATOR, Target, prototype_ce
from poa_kernels.prototype_ce_chunks import LARGE, is_large
from poa_kernels.rows import gather_rows


@dataclass(frozen=True)
class Terms:
    """Unweighted terms of n students, averaged over the heads.

    dino, ibot: (n,) towards the teacher. imitation: (n - 1,) of the others towards the intact
    one, (0,) where it has no weight. koleo: a scalar, the mean over the students that have it.
    """

    dino: Tensor
    ibot: Tensor
    imitation: Tensor
    koleo: Tensor

    def total(
        self, weights: Sequence[float], objective: Objective, *, imitation: float = 1.0
    ) -> Tensor:
        """What is optimised: weights[k] x (terms of student k) + koleo (POA eq. 10 for n = 2).

        imitation: its weight beside a student's other terms.
        """
        own = [*(objective.dino * self.dino + objective.ibot * self.ibot)]
        others = own[1:]
        if len(self.imitation):
            others = [x + imitation * i for x, i in zip(others, self.imitation, strict=True)]
        weighted = [w * x for w, x in zip(weights, [*own[:1], *others], strict=True)]
        return sum(weighted) + objective.koleo * self.koleo

    def detached(self) -> dict[str, Tensor]:
        """By their names in metrics; those of a second elastic student are elastic2_dino, ..."""
        found = {}
        for k, (dino, ibot) in enumerate(zip(self.dino, self.ibot, strict=True)):
            number = str(k) if k > 1 else ""
            name = f"elastic{number}" if k else "intact"
            found |= {f"{name}_dino": dino, f"{name}_ibot": ibot}
            if k and len(self.imitation):
                found[f"imitation{number}"] = self.imitation[k - 1]
        return {name: x.detach() for name, x in (found | {"koleo": self.koleo}).items()}


def slot_terms(
    student: Branch,
    batch: Batch,
    assignments: Assignments,
    subnets: Sequence[Subnet],
    *,
    ibot: bool,
    temperature: float,
    drop_path: DropPath | None = None,
    imitates: bool = True,
    koleo_students: str = "all",
) -> Terms:
    """The terms of one slot. subnets: the intact one first. imitates: the others learn from it.

    koleo_students: "all" or "intact", of whom KoLeo is the mean.
    """
    crops, masks = [batch.global_crops], [batch.masks if ibot else None]
    if len(batch.local_crops):
        crops.append(batch.local_crops)
        masks.append(None)
    streams = student.backbone.streams(crops, subnets, masks, drop_path)
    # rows of each stream: 2B global, then LB local class tokens; M masked patches
    cls_rows = [torch.cat([tokens[:, 0] for tokens in stream]) for stream in streams]
    where = masked(batch, ibot)
    tokens = [rearrange(stream[0][:, 1:], "crops n c -> (crops n) c") for stream in streams]
    patch_rows = [gather_rows(rows, where) for rows in tokens]
    weights = batch.mask_weights if ibot else batch.mask_weights[:0]
    matching = partial(
        Matching,
        assignments=assignments,
        size=batch.size,
        patch_weights=weights,
        temperature=temperature,
        imitates=imitates,
    )
    if student.elastic_heads is None:
        projections = student.project(cls_rows, patch_rows, ibot=ibot)
        found = matching(projections, students=len(subnets)).cross_entropies()
    else:
        intact, others = student.project_apart(cls_rows, patch_rows, ibot=ibot)
        found = matching(intact, students=1).cross_entropies()
        if len(subnets) > 1:
            apart = matching(others, students=len(subnets) - 1, intact=intact)
            found = [torch.cat(pair) for pair in zip(found, apart.cross_entropies(), strict=True)]
        else:
            found = [found[0] + others.of_nobody(), *found[1:]]
    spread = cls_rows if koleo_students == "all" else cls_rows[:1]
    global_cls = [rows[: 2 * batch.size] for rows in spread]
    koleo = sum(losses.koleo(crop) for rows in global_cls for crop in rows.chunk(2)) / len(spread)
    return Terms(*found, koleo)


@dataclass(frozen=True)
class Matching:
    """What n students said of B images beside the teacher, under all heads.

    projections: the rows of student 0, then of student 1, ... patch_weights (M,): 1 / masked
    patches of that crop. largest: scores of a head that may lie in memory. imitates: students
    learn from the intact one too. intact: what that one said under heads of its own; None: it is
    student 0.
    """

    projections: Projections
    assignments: Assignments
    students: int
    size: int
    patch_weights: Tensor
    temperature: float
    largest: int = LARGE
    imitates: bool = True
    intact: Projections | None = None

    @property
    def copies(self) -> int:
        """How many students, the last ones, learn from the intact one too."""
        others = self.students - (self.intact is None)
        return others if self.imitates else 0

    def cross_entropies(self) -> tuple[Tensor, Tensor, Tensor]:
        """(dino (n,), ibot (n,), imitation (copies,)), means over the heads."""
        per_head = []
        for head in range(len(self.projections.cls)):
            terms = self._by_rows(head) if self._is_large(head) else self._by_matrices(head)
            per_head.append(torch.cat(terms))
        n = self.students
        return torch.stack(per_head).mean(0).split((n, n, self.copies))

    def _is_large(self, head: int) -> bool:
        """Whether the cross-entropies are made without all scores in memory."""
        p = self.projections
        pairs = ((p.cls, p.cls_prototypes), (p.patches, p.patch_prototypes))
        large = any(is_large(z[head], w[head], self.largest) for z, w in pairs)
        return large or choose(OPERATOR, p.cls[head]) == "triton"

    def _by_matrices(self, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of one head from the whole score matrices of the students."""
        temperature, targets = self.temperature, self.assignments.targets(head)
        students = self._scores(self.projections, head, self.students)
        matched = [losses.match(s, targets, self.patch_weights, temperature) for s in students]
        dino, ibot = (torch.stack(terms) for terms in zip(*matched, strict=True))
        if not self.copies:
            return dino, ibot, dino[:0]
        intact = students[0]
        if self.intact is not None:
            with torch.no_grad():
                (intact,) = self._scores(self.intact, head, 1)
        others = students[-self.copies :]
        return dino, ibot, torch.stack([losses.imitate(s, intact, temperature) for s in others])

    def _scores(self, p: Projections, head: int, students: int) -> list[Scores]:
        """What each of so many students says under one head."""
        cls = score(p.cls[head], p.cls_prototypes[head])
        patches = score(p.patches[head], p.patch_prototypes[head])

        def apart(rows: Tensor) -> Tensor:
            return rearrange(rows, "(students rows) k -> students rows k", students=students)

        size = self.size
        return [
            Scores(
                rearrange(c[: 2 * size], "(crops images) k -> crops images k", crops=2),
                rearrange(c[2 * size :], "(crops images) k -> crops images k", images=size),
                m,
            )
            for c, m in zip(apart(cls), apart(patches), strict=True)
        ]

    def _by_rows(self, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of one head; neither logits nor probabilities outlive a kernel."""
        size, (cls, patches) = self.size, self._rows(head)
        views = cls.shape[1] // size
        dino = cls[:, :, 0].sum(1) / (size * pairing.count(views))
        ibot = (patches * self.patch_weights).sum(1) / (2 * size)
        kinds = (slice(2 * size), slice(2 * size, None)) if views > 2 else (slice(None),)
        others = cls[self.students - self.copies :]
        copied = [sum(rows[kind, 1].mean() for kind in kinds) for rows in others]
        return dino, ibot, torch.stack(copied) if copied else dino[:0]

    @cached_property
    def _links(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows of a target each row of all students meets, under every head: class rows
        (n R, 2) the teacher's and (n R, 1) the intact student's, patches (n M, 1) the teacher's."""
        n, z, shown = self.students, self.projections.cls[0], self.assignments.projections
        rows = len(z) // n
        met = pairing.rows_met(self.size, rows // self.size, z.device).repeat(n, 1)
        own = torch.arange(rows, device=z.device, dtype=torch.int32)
        none = torch.full_like(own, -1)
        first = none if self.intact is None else own
        intact = torch.cat((first, own.repeat(n - 1)))[:, None]
        masked = torch.arange(len(shown.patches[0]), device=z.device, dtype=torch.int32)
        return met, intact, masked.repeat(n)[:, None]

    def _rows(self, head: int) -> tuple[Tensor, Tensor]:
        """Cross-entropies of the rows of all students under one head, from one pass.

        (n, R, 2): of each class row towards teacher and intact student, (n, R, 1) where none
        imitates; (n, M): of each patch.
        """
        p, a, n = self.projections, self.assignments, self.students
        t, z, w = a.projections, p.cls[head], p.cls_prototypes[head]
        rows, (met, intact, same) = len(z) // n, self._links
        first = self.intact or p
        whole, of_intact = first.cls[head][:rows].detach(), first.cls_prototypes[head].detach()
        targets = (
            Target(t.cls[head], t.cls_prototypes[head], a.temperature, a.cls_biases[head], met),
            Target(whole, of_intact, self.temperature, None, intact),
        )
        chosen = targets if self.copies else targets[:1]
        cls = prototype_ce(z, w, chosen, self.temperature).unflatten(0, (n, rows))

        z, w, masked = p.patches[head], p.patch_prototypes[head], len(t.patches[head])
        bias = a.patch_biases[head]
        target = Target(t.patches[head], t.patch_prototypes[head], a.temperature, bias, same)
        patches = prototype_ce(z, w, (target,), self.temperature)
        return cls, patches.view(n, masked)

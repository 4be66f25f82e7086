"""A network as it is trained: a backbone and its prototype heads, and what they say."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.heads import HeadBank
from poa_kernels.prototype_ce_chunks import finely, rows_at_a_time
from poa_kernels.slices import wide


class Branch(nn.Module):
    """Backbone and heads of one network, student or teacher.

    ibot_heads: heads of their own for patch tokens; None: `heads` serve both kinds of tokens.
    """

    def __init__(
        self, backbone: ElasticBackbone, heads: HeadBank, ibot_heads: HeadBank | None = None
    ) -> None:
        super().__init__()
        self.backbone, self.heads, self.ibot_heads = backbone, heads, ibot_heads
        self.elastic_heads: HeadBank | None = None
        self.elastic_ibot_heads: HeadBank | None = None

    def part_heads(self) -> "Branch":
        """This network, of which the smaller students have copies of these heads for themselves."""
        self.elastic_heads = deepcopy(self.heads)
        self.elastic_ibot_heads = deepcopy(self.ibot_heads)
        return self

    def project(
        self, cls_rows: Sequence[Tensor], patch_rows: Sequence[Tensor], *, ibot: bool
    ) -> "Projections":
        """Head outputs of any number of streams: class rows (R, C) and patch rows (M, C) of each.

        Every head is entered once (lockstep under ZeRO-3).
        """
        return project(self.heads, self.ibot_heads, cls_rows, patch_rows, ibot=ibot)

    def project_apart(
        self, cls_rows: Sequence[Tensor], patch_rows: Sequence[Tensor], *, ibot: bool
    ) -> tuple["Projections", "Projections"]:
        """(of the intact student, which comes first; of the smaller ones, by their own heads).

        All heads are entered where the intact student is alone, too.
        """
        assert self.elastic_heads is not None
        kinds = (cls_rows, patch_rows)
        others = [rows[1:] or [rows[0][:0]] for rows in kinds]
        return (
            self.project(*[rows[:1] for rows in kinds], ibot=ibot),
            project(self.elastic_heads, self.elastic_ibot_heads, *others, ibot=ibot),
        )


def project(
    heads: HeadBank,
    ibot_heads: HeadBank | None,
    cls_rows: Sequence[Tensor],
    patch_rows: Sequence[Tensor],
    *,
    ibot: bool,
) -> "Projections":
    """`Branch.project` by these heads."""
    if ibot_heads is None or not ibot:
        pairs = zip(cls_rows, patch_rows, strict=True)
        outputs = heads(*[torch.cat(pair) for pair in pairs])
        sizes = [len(x) for pair in zip(cls_rows, patch_rows, strict=True) for x in pair]
        cls, patches = [], []
        for z, _ in outputs:
            parts = z.split(sizes)
            cls.append(torch.cat(parts[0::2]))
            patches.append(torch.cat(parts[1::2]))
        prototypes = tuple(w for _, w in outputs)
        return Projections(tuple(cls), tuple(patches), prototypes, prototypes)
    cls_out, patch_out = heads(*cls_rows), ibot_heads(*patch_rows)
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

    def of_nobody(self) -> Tensor:
        """0, whose gradient is zero in every parameter of these heads, and none is left out."""
        return sum(wide(x[:0]).sum() for x in self.cls + self.patches + self.prototypes)

    def for_scores(self) -> "Projections":
        """The same at the precision that the teacher's scores are made of, on every way."""
        found = {id(x): finely(x) for x in self.cls + self.patches + self.prototypes}
        kinds = (self.cls, self.patches, self.cls_prototypes, self.patch_prototypes)
        return Projections(*[tuple(found[id(x)] for x in kind) for kind in kinds], self.tokens)

    def scores(self) -> Iterator[Tensor]:
        """Scores (rows, K) under each of `prototypes`, made when asked."""
        rows = self.cls + self.patches
        return (F.linear(z, w) for z, w in zip(rows, self.prototypes, strict=True))

    def parts(self, chunk: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """(place in `prototypes`, scores) of some rows at a time; every place comes, even empty.

        chunk: see rows_at_a_time.
        """
        for i, (z, w) in enumerate(zip(self.cls + self.patches, self.prototypes, strict=True)):
            for rows in z.split(rows_at_a_time(w, chunk)):
                yield i, F.linear(rows, w)

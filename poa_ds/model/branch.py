"""A network as it is trained: a backbone and its prototype heads, and what they say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.heads import HeadBank
from poa_kernels.prototype_ce_chunks import finely, rows_at_a_time


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
        """Head outputs of any number of streams: class rows (R, C) and patch rows (M, C) of each.

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

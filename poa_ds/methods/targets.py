"""The teacher's targets of all slots: Sinkhorn-Knopp over the run's ranks, or running centres."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.methods import losses
from poa_ds.methods.losses import Targets
from poa_ds.model.branch import Branch, Projections
from poa_ds.model.heads import score
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_ds.system.transfer import send

CENTER_MOMENTUM = 0.9  # source: the published code


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
            rearrange(self.cls_targets(head), "(crops images) k -> crops images k", crops=2),
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
    patches = rearrange(tokens[:, 1:], "crops n c -> (crops n) c")[masked(batch, ibot)]
    cls = tokens[:, 0].clone()  # a view would keep all tokens
    shown = teacher.project([cls], [patches], ibot=ibot).for_scores()
    return replace(shown, tokens=cls)


def masked(batch: Batch, ibot: bool) -> Tensor:
    """Places of the patches that iBOT compares; none without it."""
    return batch.mask_indices if ibot else batch.mask_indices[:0]


@torch.no_grad()
def balance(
    shown: Sequence[Projections], temperature: float, *, iterations: int, chunk: int | None = None
) -> list[Assignments]:
    """Sinkhorn-Knopp over the slots of all ranks, per head and kind of token.

    chunk: scores that are made at a time; None: what suits the device.
    """

    def passes() -> Iterator[tuple[int, Tensor]]:
        return (part for projections in shown for part in projections.parts(chunk))

    prototypes = [len(w) for w in shown[0].prototypes]
    biases = losses.sinkhorn_biases(passes, prototypes, temperature, iterations)
    return _assignments(shown, temperature, biases)


@torch.no_grad()
def center(
    shown: Sequence[Projections], temperature: float, centers: dict[str, Tensor]
) -> list[Assignments]:
    """Softmax targets around running centres; `centers` then takes in this step's mean scores.

    centers: "cls.<head>" and "patches.<head>" -> (K,), missing ones start at zero. The mean is
    over the slots of the mean over each slot's rows (the published one: over ranks); a step
    uses the centre of the steps before it.
    """
    heads = len(shown[0].cls_prototypes)
    names = [f"{kind}.{head}" for kind in ("cls", "patches") for head in range(heads)]
    for name, w in zip(names, shown[0].prototypes, strict=True):
        centers.setdefault(name, torch.zeros(len(w), device=w.device))
    biases = [losses.centering_bias(centers[name], temperature) for name in names]
    sums, counts = [torch.zeros_like(centers[n]) for n in names], torch.zeros(len(names))
    for projections in shown:
        for i, scores in enumerate(projections.scores()):
            if len(scores):
                sums[i] += scores.float().mean(0)
                counts[i] += 1
    counts = dist.all_sum(send(counts, sums[0].device))
    totals = dist.all_sum(torch.cat(sums)).split([len(s) for s in sums])
    for name, total, count in zip(names, totals, counts, strict=True):
        old = centers[name]
        mean = total / count.clamp_min(1)
        moved = old * CENTER_MOMENTUM + mean * (1 - CENTER_MOMENTUM)
        centers[name] = torch.where(count > 0, moved, old)
    return _assignments(shown, temperature, biases)


def _assignments(
    shown: Sequence[Projections], temperature: float, biases: Sequence[Tensor]
) -> list[Assignments]:
    heads = len(shown[0].cls_prototypes)
    cls, patches = tuple(biases[:heads]), tuple(biases[heads:])
    return [Assignments(own, cls, patches, temperature) for own in shown]

"""What sizes see: colours of patch features, attention of the class token, nearest images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet

COMPONENTS = 3
SPREAD = 4.0  # standard deviations from the darkest to the brightest of a colour
BRIGHTEST = (
    0.99  # quantile of an image's attention that is white: a few patches may take nearly all
)


@dataclass(frozen=True)
class Seen:
    """Class features (B, C), patch tokens (B, N, C), attention of the class token (B, heads, N).

    heads: None of a network that has no class token, whose class feature is a mean of patches.
    """

    tokens: Tensor
    patches: Tensor
    heads: Tensor | None

    @property
    def attention(self) -> Tensor:
        """(B, N), the mean of the heads."""
        assert self.heads is not None
        return self.heads.mean(1)

    @classmethod
    def joined(cls, parts: Sequence["Seen"]) -> "Seen":
        heads = [part.heads for part in parts if part.heads is not None]
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.patches for part in parts]),
            torch.cat(heads) if heads else None,
        )


@torch.inference_mode()
def see(network: nn.Module, images: Tensor) -> Seen:
    """Of a plain vision transformer; attention: of its last block."""
    kept: list[Tensor] = []
    first = network.num_prefix_tokens  # the class token and registers

    def keep(attention: nn.Module, inputs: tuple[Tensor, Tensor | None]) -> None:
        q, k, _ = attention.queries_keys_values(*inputs)
        scores = q[:, :, :1] @ k.transpose(-1, -2) * k.shape[-1] ** -0.5
        kept.append(scores.softmax(-1)[:, :, 0, first:])

    hook = network.blocks[-1].attn.register_forward_pre_hook(keep)
    try:
        tokens = network.forward_features(images)
    finally:
        hook.remove()
    return Seen(tokens[:, 0], tokens[:, first:], kept[0])


@torch.inference_mode()
def see_map(network: ElasticBackbone, subnet: Subnet, images: Tensor) -> Seen:
    """Of a size of any backbone: what leaves it, without an attention."""
    tokens = network(images, subnet)
    return Seen(tokens[:, 0], tokens[:, 1:], None)


def scores(features: Tensor, count: int = COMPONENTS) -> Tensor:
    """(M, C) -> (M, count) float64: principal components, each with mean 0 and deviation 1.

    The largest weight of each component is positive. Fewer channels than `count`: zeros behind.
    """
    centred = features.double() - features.double().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    axes = vectors.flip(1)[:, :count]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    found = centred @ axes
    found = found / found.std(0, correction=0).clamp_min(1e-9)
    return F.pad(found, (0, count - found.shape[1]))


def turned(moved: Tensor, onto: Tensor) -> Tensor:
    """The scores (M, K), turned or mirrored so that they lie next to those of another size.

    Orthogonal Procrustes: no other rotation has a smaller sum of squared distances.
    """
    u, _, v = torch.linalg.svd(moved.T @ onto)
    return moved @ (u @ v)


def colours(patches: Sequence[Tensor]) -> list[Tensor]:
    """(B, N, C_i) of each size -> (B, N, 3) in 0 .. 1, aligned with the last.

    The components are those of all patches of all images, so that a colour means the same in all.
    """
    found = [scores(x.flatten(0, 1)) for x in patches]
    aligned = [turned(x, found[-1]) for x in found]
    return [
        (x / SPREAD + 0.5).clamp(0, 1).unflatten(0, p.shape[:2])
        for x, p in zip(aligned, patches, strict=True)
    ]


def places(tokens: Sequence[Tensor]) -> list[Tensor]:
    """(B, C_i) of each size -> (B, 2) in 0 .. 1: two principal components, aligned with the last.

    Both by one scale, so that a distance is the same in all directions.
    """
    found = [scores(x, 2) for x in tokens]
    aligned = [turned(x, found[-1]) for x in found]
    reach = max(float(x.abs().max()) for x in aligned)
    return [(x / reach + 1) / 2 for x in aligned]


def brightness(attention: Tensor) -> Tensor:
    """(B, N) -> (B, N) in 0 .. 1: white is an image's 99th percentile."""
    return (attention / attention.quantile(BRIGHTEST, dim=1, keepdim=True)).clamp(0, 1)


def nearest(tokens: Tensor, bank: Tensor, same: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(cosines, numbers) (B, count) of the most similar rows of the bank (M, C), best first.

    same (B, M): those that are the same picture are no neighbours: -inf where none is left.
    """
    unit, other = (F.normalize(x.double(), dim=1) for x in (tokens, bank))
    alike = (unit @ other.T).masked_fill(same, -torch.inf)
    found = alike.topk(min(count, len(bank)), dim=1)
    return found.values, found.indices

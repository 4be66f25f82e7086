"""Orders of the rows of a layer: ours, of which a slice is a prefix, and that of other code."""

import torch
from einops import rearrange
from torch import Tensor


def head_major(qkv: Tensor, head_dim: int, parts: int = 3) -> Tensor:
    """Rows (q|k|v, head, channel) -> (head, q|k|v, channel). Weight (3C, in) or bias (3C,).

    parts: 2 of a bias that keys have none of.
    """
    return rearrange(qkv, "(q h d) ... -> (h q d) ...", q=parts, d=head_dim).contiguous()


def third_major(qkv: Tensor, head_dim: int, parts: int = 3) -> Tensor:
    """The inverse of `head_major`."""
    return rearrange(qkv, "(h q d) ... -> (q h d) ...", q=parts, d=head_dim).contiguous()


def unit_major(fc1: Tensor) -> Tensor:
    """Rows of a gated layer (gate|value, unit) -> (unit, gate|value). Weight or bias."""
    return rearrange(fc1, "(g h) ... -> (h g) ...", g=2).contiguous()


def gate_major(fc1: Tensor) -> Tensor:
    """The inverse of `unit_major`."""
    return rearrange(fc1, "(h g) ... -> (g h) ...", g=2).contiguous()


def with_key_bias(bias: Tensor, head_dim: int) -> Tensor:
    """(head, q|v, channel) -> (head, q|k|v, channel), zeros for the keys. Bias (2C,) -> (3C,)."""
    q, v = bias.unflatten(0, (-1, 2, head_dim)).unbind(1)
    return torch.stack((q, torch.zeros_like(q), v), dim=1).flatten()


def without_key_bias(bias: Tensor, head_dim: int) -> Tensor:
    """The inverse of `with_key_bias`, whatever the keys' bias is. Bias (3C,) -> (2C,)."""
    return bias.unflatten(0, (-1, 3, head_dim))[:, ::2].flatten().contiguous()

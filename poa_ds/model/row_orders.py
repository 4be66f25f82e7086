"""Orders of the rows of a layer: ours, of which a slice is a prefix, and that of other code."""

from einops import rearrange
from torch import Tensor


def head_major(qkv: Tensor, head_dim: int) -> Tensor:
    """Rows (q|k|v, head, channel) -> (head, q|k|v, channel). Weight (3C, in) or bias (3C,)."""
    return rearrange(qkv, "(q h d) ... -> (h q d) ...", q=3, d=head_dim).contiguous()


def third_major(qkv: Tensor, head_dim: int) -> Tensor:
    """The inverse of `head_major`."""
    return rearrange(qkv, "(h q d) ... -> (q h d) ...", q=3, d=head_dim).contiguous()


def unit_major(fc1: Tensor) -> Tensor:
    """Rows of a gated layer (gate|value, unit) -> (unit, gate|value). Weight or bias."""
    return rearrange(fc1, "(g h) ... -> (h g) ...", g=2).contiguous()


def gate_major(fc1: Tensor) -> Tensor:
    """The inverse of `unit_major`."""
    return rearrange(fc1, "(h g) ... -> (g h) ...", g=2).contiguous()

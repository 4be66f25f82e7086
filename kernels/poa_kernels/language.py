"""Triton where it is installed, else stand-ins with which the kernels can be read but not run.

Everything about Triton that the operators share: the decorator, `tl`, a dot product that is right
in the interpreter too, and the record from which a kernel is compiled without a GPU.
"""

import importlib.util
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

# arguments that change from step to step or from size to size and say nothing about alignment:
# Triton would compile anew where one of them is 1 or a multiple of 16
VARYING = set("rows rows0 rows1 tiles0 share plane first parts tokens heads".split())

INSTALLED = importlib.util.find_spec("triton") is not None
if INSTALLED:
    # Triton 3.9 warns where this is unset, 3.10 turns a * b + c into two roundings
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    import triton.language as tl

    def jit(function: Callable) -> Callable:
        names = inspect.signature(function).parameters
        return triton.jit(do_not_specialize=[n for n in names if n in VARYING])(function)

else:
    tl = SimpleNamespace(constexpr=lambda value: SimpleNamespace(value=value))

    def jit(function: Callable) -> Callable:
        return function


# Triton reads the variable when a kernel is defined: set it before this module is imported
INTERPRETED = INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. "widen": the interpreter multiplies bf16 as integers, in silence."""
    if PRECISION == "widen":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


def precision(x: Tensor) -> str:
    """The PRECISION of `dot` for operands like x; 16-bit operands are always multiplied exactly."""
    if x.dtype == torch.float32:
        return "ieee"
    return "widen" if INTERPRETED else "tf32"


def blocks(total: int, size: int) -> int:
    """How many blocks of a size cover the total."""
    return -(-total // size)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


@dataclass(frozen=True)
class Case:
    """One kernel in one configuration, as aot.py compiles it.

    types: argument -> "*bf16", "i32", "fp32" ... ; constants: of the tl.constexpr arguments;
    sixteens: integer arguments that are multiples of 16; products: needs tensor cores.
    """

    name: str
    kernel: object
    types: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int
    num_stages: int
    sixteens: tuple[str, ...] = ()
    products: bool = False

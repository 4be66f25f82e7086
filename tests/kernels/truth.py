"""Kernels against float64: an error may not exceed that of plain PyTorch at the same precision."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")

# the interpreter rounds bf16 towards zero and multiplies it as integers: fp32 and fp16 there
DTYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=[pytest.mark.gpu, needs_gpu]),
]
# of the largest value: sums in another order; one rounding of a 16-bit result
TOLERANCE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}

Function = Callable[..., Tensor | tuple[Tensor, ...]]


def randn(*shape: int, seed: int) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(
    kernel: Function,
    reference: Function,
    leaves: Sequence[Tensor],
    dtype: torch.dtype,
    *,
    naive: Function | None = None,
    conditioning: float = 1.0,
    lay_out: Callable[[Tensor], Tensor] = lambda x: x,
) -> None:
    """Values and all gradients of kernel(*leaves). leaves: float64, rounded to dtype first.

    reference: in float64 the truth, at dtype the naive computation (or `naive`). lay_out: what is
    done to each leaf before the kernel gets it (values unchanged, memory arranged otherwise).
    conditioning: how much the operator enlarges a rounding error of float32.
    """
    rounded = [leaf.to(dtype) for leaf in leaves]
    truth = _run(reference, [leaf.double() for leaf in rounded])
    plain = _run(naive or reference, rounded)
    ours = _run(kernel, rounded, lay_out)
    for (name, expected), (_, low), (_, got) in zip(truth, plain, ours, strict=True):
        assert got.shape == expected.shape, name
        assert not got.isnan().any(), f"{name}: not everything was written"
        if expected.numel():
            tolerance = max(TOLERANCE[dtype], TOLERANCE[torch.float32] * conditioning)
            _compare(name, expected, low, got, tolerance)


def _compare(name: str, expected: Tensor, low: Tensor, got: Tensor, tolerance: float) -> None:
    for measure in (torch.linalg.vector_norm, lambda x: x.abs().max()):
        allowed = measure(expected - low.double()) + tolerance * measure(expected)
        error = measure(expected - got.double())
        assert error <= allowed, f"{name}: error {error:.2e}, {allowed:.2e} allowed"


def _run(
    function: Function, values: Sequence[Tensor], lay_out: Callable[[Tensor], Tensor] = lambda x: x
) -> list[tuple[str, Tensor]]:
    # copies: gradients of two runs must not add up in one tensor
    leaves = [value.detach().clone().to(DEVICE).requires_grad_() for value in values]
    outputs = function(*[lay_out(leaf) for leaf in leaves])
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    gradients = [
        randn(*out.shape, seed=90 + i).to(out.dtype).to(DEVICE) for i, out in enumerate(outputs)
    ]
    torch.autograd.backward(outputs, gradients)
    return list(_named(outputs, leaves))


def _named(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    for i, out in enumerate(outputs):
        yield f"output {i}", out.detach().cpu()
    for i, leaf in enumerate(leaves):
        assert leaf.grad is not None, f"no gradient of input {i}"
        yield f"gradient {i}", leaf.grad.cpu()


def strided(x: Tensor) -> Tensor:
    """The same values as a column slice of a wider tensor, whose other columns are NaN."""
    if x.dim() < 2:
        return x
    rest = torch.full_like(x, torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max)
    return torch.cat((x, rest), dim=-1)[..., : x.shape[-1]]


def transposed(x: Tensor) -> Tensor:
    """The same values, stored column by column."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() >= 2 else x

"""One comparison of the benchmark: contenders for the same work, and how each of them is run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from poa_kernels import dispatch

Run = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Comparison:
    """The same work done by several contenders; each run returns what is compared.

    truth: the same values in float32 or better. lines: the lines of the table that it decides.
    floor: an error that is allowed in any case, relative to the truth.
    """

    name: str
    contenders: dict[str, Run]
    truth: Run
    lines: tuple[str, ...] = ()
    flops: float = 0.0
    bytes: float = 0.0
    threshold: float = 1.05  # of the time: PyTorch's best / ours
    floor: float = 1e-5
    compiled: dict[str, Run] = field(default_factory=dict)  # left out of the smoke run


@dataclass(frozen=True)
class Scene:
    """Where and how large. small: seconds in the interpreter."""

    device: str
    dtype: torch.dtype
    small: bool

    def randn(self, *shape: int, leaf: bool = False) -> Tensor:
        x = torch.randn(*shape, device=self.device).to(self.dtype)
        return x.requires_grad_() if leaf else x

    def unit(self, *shape: int, leaf: bool = False) -> Tensor:
        x = F.normalize(torch.randn(*shape, device=self.device), dim=-1).to(self.dtype)
        return x.requires_grad_() if leaf else x


def in_mode(mode: dispatch.Mode, run: Run) -> Run:
    def inside() -> Sequence[Tensor]:
        with dispatch.using(mode):
            return run()

    return inside


def _trained(function: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor]) -> Run:
    """Forward and backward; outputs and all gradients."""
    with torch.no_grad():
        gradients = _small_numbers(function(*leaves))

    def run() -> Sequence[Tensor]:
        outputs = tuple(function(*leaves))
        return *(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, gradients)

    return run


def _small_numbers(like: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a few bits each, so that they are the same numbers at every precision."""
    generator = torch.Generator(like[0].device).manual_seed(1)
    return [
        torch.randint(-8, 9, x.shape, generator=generator, device=x.device).to(x.dtype)
        for x in like
    ]


def ways(
    function: Callable[..., Sequence[Tensor]],
    published: Callable[..., Sequence[Tensor]],
    leaves: Sequence[Tensor],
) -> dict:
    """Arguments of a Comparison: published, eager, Triton, compiled; the truth in float32."""
    run = _trained(function, leaves)
    wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
    return {
        "contenders": {
            "published": _trained(published, leaves),
            "eager": in_mode("reference", run),
            "triton": in_mode("triton", run),
        },
        "truth": in_mode("reference", _trained(function, wide)),
        "compiled": {"compiled": _trained_late(published, leaves)},
    }


def _trained_late(function: Callable, leaves: Sequence[Tensor]) -> Run:
    """As _trained of the compiled function, compiled at the first run."""
    made: list[Run] = []

    def run() -> Sequence[Tensor]:
        if not made:
            made.append(_trained(torch.compile(function), leaves))
        return made[0]()

    return run


def as_list(function: Callable, arguments: Sequence) -> Run:
    def run() -> Sequence[Tensor]:
        found = function(*arguments)
        return [found] if isinstance(found, Tensor) else list(found)

    return run

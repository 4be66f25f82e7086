"""Cross-entropy against prototypes: losses and both gradients against float64."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from poa_kernels import dispatch, prototype_ce
from poa_kernels.prototype_ce import Target
from poa_kernels.prototype_ce_chunks import in_chunks, rows_at_a_time
from tests.kernels.truth import DEVICE, DTYPES, check, randn, strided, transposed

TEMPERATURE, TEACHER = 0.1, 0.05
# exponents reach 1 / TEACHER in float32
ILL = {"conditioning": 4.0}
# N rows, K prototypes, D, links of the first target, with a second target
SHAPES = {
    "one link": (45, 203, 32, 1, False),
    "two links": (33, 130, 16, 2, False),
    "two targets": (70, 257, 64, 2, True),
    "one row": (1, 65, 32, 1, True),
    "one prototype": (9, 1, 16, 1, False),
    "odd width": (11, 40, 21, 1, True),
    "no rows": (0, 40, 16, 2, True),
}


def unit(rows: int, width: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(randn(rows, width, seed=seed), dim=-1)


def index(rows: int, links: int, table: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, table, (rows, links), generator=generator, dtype=torch.int32)


def targets_of(shape: str, like: Tensor, table_dtype: torch.dtype) -> list[Target]:
    """The targets at the precision of `like`, their values rounded to table_dtype first."""
    n, k, d, links, two = SHAPES[shape]
    z, w, bias = unit(11, d, seed=5), unit(k, d, seed=6), randn(k, seed=7)
    place = {"dtype": like.dtype, "device": like.device}
    z, w = (x.to(table_dtype).to(**place) for x in (z, w))
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    bias = bias.float().to(like.device, wide)
    found = [Target(z, w, TEACHER, bias, index(n, links, 11, 8).to(like.device))]
    if two:
        y = unit(7, d, seed=9).to(table_dtype).to(**place)
        found.append(Target(y, w, TEMPERATURE, None, index(n, 1, 7, 10).to(like.device)))
    return found


def written_out(x: Tensor, p: Tensor, targets: list[Target]) -> Tensor:
    """Row by row from the definition, in the precision of x."""
    log_q = torch.log_softmax((x @ p.T).double() / TEMPERATURE, -1).to(x.dtype)
    columns = []
    for t in targets:
        scores = (t.rows @ t.prototypes.T) / t.temperature
        q = torch.softmax(scores if t.bias is None else scores + t.bias, -1)
        rows = [
            sum((-(q[i] * log_q[r]).sum() for i in links if i >= 0), 0 * log_q[r].sum())
            for r, links in enumerate(t.index.tolist())
        ]
        columns.append(torch.stack(rows) if rows else 0 * log_q.sum(-1))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients(shape: str, dtype: torch.dtype) -> None:
    def truth(x: Tensor, p: Tensor) -> Tensor:
        return written_out(x, p, targets_of(shape, x, dtype))

    def naive(x: Tensor, p: Tensor) -> Tensor:
        return prototype_ce.reference(x, p, targets_of(shape, x, dtype), TEMPERATURE)

    def kernel(x: Tensor, p: Tensor) -> Tensor:
        return prototype_ce.prototype_ce(x, p, targets_of(shape, x, dtype), TEMPERATURE)

    n, k, d, *_ = SHAPES[shape]
    check(kernel, truth, [unit(n, d, seed=0), unit(k, d, seed=1)], dtype, naive=naive, **ILL)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_in_chunks_of_plain_pytorch(shape: str, dtype: torch.dtype) -> None:
    n, k, d, *_ = SHAPES[shape]

    def chunks(x: Tensor, p: Tensor) -> Tensor:  # three of the widest shape
        return in_chunks(x, p, targets_of(shape, x, dtype), TEMPERATURE, chunk=16 * k)

    def truth(x: Tensor, p: Tensor) -> Tensor:
        return written_out(x, p, targets_of(shape, x, dtype))

    def naive(x: Tensor, p: Tensor) -> Tensor:
        return prototype_ce.reference(x, p, targets_of(shape, x, dtype), TEMPERATURE)

    leaves = [unit(n, d, seed=0), unit(k, d, seed=1)]
    check(chunks, truth, leaves, dtype, naive=naive, **ILL)


@pytest.mark.parametrize("lay_out", [strided, transposed])
def test_inputs_need_not_be_contiguous(lay_out) -> None:
    def kernel(x: Tensor, p: Tensor) -> Tensor:
        targets = targets_of("two targets", x, torch.float32)
        arranged = [
            Target(lay_out(t.rows), lay_out(t.prototypes), t.temperature, t.bias, lay_out(t.index))
            for t in targets
        ]
        return prototype_ce.prototype_ce(x, p, arranged, TEMPERATURE)

    n, k, d, *_ = SHAPES["two targets"]
    leaves = [unit(n, d, seed=0), unit(k, d, seed=1)]

    def truth(x: Tensor, p: Tensor) -> Tensor:
        return written_out(x, p, targets_of("two targets", x, torch.float32))

    check(kernel, truth, leaves, torch.float32, lay_out=lay_out, **ILL)


def test_tiny_gradients_lose_nothing_in_fp16() -> None:
    """Loss weights of 1e-7 are far below fp16's smallest number after a product."""
    n, k, d, *_ = SHAPES["two targets"]
    x, p = (unit(rows, d, seed=i).half().to(DEVICE) for i, rows in enumerate((n, k)))
    gradients = []
    for size in (1.0, 2.0**-20):
        a, b = x.clone().requires_grad_(), p.clone().requires_grad_()
        targets = targets_of("two targets", a.detach(), torch.float16)
        losses = prototype_ce.prototype_ce(a, b, targets, TEMPERATURE)
        # what leaves the operator is 16 bits wide: bring it back to size before that
        seen: list[Tensor] = []
        a.register_hook(lambda g, seen=seen: seen.append(g.float()))
        (losses.sum() * size * 2.0**10).backward()
        gradients.append((seen[0] / size, b.grad.float() / size))
    for first, second in zip(*gradients, strict=True):
        assert (first - second).norm() < 0.05 * first.norm()


def test_the_reference_serves_other_widths_and_float64() -> None:
    for shape in ("one link", "two targets"):
        n, k, d, *_ = SHAPES[shape]
        x, p = unit(n, d, seed=0), unit(k, d, seed=1)
        targets = targets_of(shape, x, torch.float64)
        with dispatch.using("auto"):
            whole = prototype_ce.prototype_ce(x, p, targets, TEMPERATURE)
        parts = in_chunks(x, p, targets, TEMPERATURE, chunk=4000)
        for got in (whole, parts):
            assert torch.allclose(got, written_out(x, p, targets), rtol=1e-12)


def test_a_gpu_makes_large_chunks() -> None:
    with FakeTensorMode():
        prototypes = torch.empty(65536, 256, device="cuda")
    assert rows_at_a_time(prototypes) == 2048  # half a GiB of float32
    assert rows_at_a_time(torch.empty(65536, 1)) == 256
    assert rows_at_a_time(prototypes, chunk=1) == 1

"""The two-stream linear layer: Triton and PyTorch's products on views against plain slicing."""

import gc

import pytest
import torch
from torch import Tensor

from poa_kernels import dispatch, two_stream_descriptors, two_stream_linear
from tests.kernels.truth import DEVICE, DTYPES, check, randn, strided, transposed

# rows of the streams, weight, (in, out) of the elastic stream
SHAPES = {
    "odd widths": (37, 50, (96, 80), (47, 33)),
    "qkv": (29, 41, (144, 48), (32, 96)),
    "fc2": (33, 18, (24, 96), (64, 16)),
    "same width": (20, 20, (40, 72), (72, 40)),
    "one column": (7, 70, (33, 20), (1, 1)),
    "no elastic rows": (5, 0, (16, 32), (16, 8)),
    "no rows": (0, 0, (16, 32), (16, 8)),
}


def plain(xf: Tensor, xs: Tensor, w: Tensor, b: Tensor | None, out: int) -> tuple[Tensor, Tensor]:
    scale = w.shape[1] / xs.shape[1]
    yf, ys = xf @ w.T, (xs * scale) @ w[:out, : xs.shape[1]].T
    return (yf, ys) if b is None else (yf + b, ys + b[:out])


def leaves(shape: str) -> list[Tensor]:
    full, part, (height, width), (narrow, _) = SHAPES[shape]
    sizes = [(full, width), (part, narrow), (height, width), (height,)]
    return [randn(*size, seed=seed) for seed, size in enumerate(sizes)]


def ours(out: int):
    def function(xf: Tensor, xs: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return two_stream_linear.two_stream_linear((xf, xs), w, b, (len(w), out))

    return function


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["triton", "auto"])
def test_values_and_gradients(mode: str, shape: str, dtype: torch.dtype) -> None:
    out = SHAPES[shape][3][1]
    with dispatch.using(mode):
        check(ours(out), lambda *x: plain(*x, out), leaves(shape), dtype)


@pytest.mark.parametrize("mode", ["triton", "auto", "reference", "descriptors"])
def test_another_exponent_of_the_factor(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    xf, xs, w, b = leaves("qkv")
    out = SHAPES["qkv"][3][1]
    factor = (w.shape[1] / xs.shape[1]) ** -0.5

    def halved(xf: Tensor, xs: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return two_stream_linear.two_stream_linear((xf, xs), w, b, (len(w), out), 0.5)

    if mode == "descriptors":
        monkeypatch.setattr(dispatch, "choose", lambda *_, **__: "descriptors")
    with dispatch.using("auto" if mode == "descriptors" else mode):
        wanted = lambda xf, xs, w, b: plain(xf, xs * factor, w, b, out)  # noqa: E731
        check(halved, wanted, [xf, xs, w, b], torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ["qkv", "fc2", "same width", "odd widths", "no elastic rows"])
def test_products_on_tensor_descriptors(
    monkeypatch: pytest.MonkeyPatch, shape: str, dtype: torch.dtype
) -> None:
    out, used = SHAPES[shape][3][1], []
    real = two_stream_descriptors.fits
    monkeypatch.setattr(dispatch, "choose", lambda *_, **__: "descriptors")
    monkeypatch.setattr(
        two_stream_descriptors, "fits", lambda *x: used.append(real(*x)) or used[-1]
    )
    check(ours(out), lambda *x: plain(*x, out), leaves(shape), dtype)
    assert used == [shape not in ("odd widths", "no elastic rows")] * 3


@pytest.mark.parametrize("lay_out", [strided, transposed])
@pytest.mark.parametrize("mode", ["triton", "auto"])
def test_inputs_need_not_be_contiguous(mode: str, lay_out) -> None:
    out = SHAPES["odd widths"][3][1]
    with dispatch.using(mode):
        inputs = leaves("odd widths")
        check(ours(out), lambda *x: plain(*x, out), inputs, torch.float32, lay_out=lay_out)


@pytest.mark.parametrize("mode", ["triton", "auto", "reference"])
@pytest.mark.parametrize("narrow", [True, False])
def test_one_stream_of_any_width_and_no_bias(mode: str, narrow: bool) -> None:
    x, w = randn(21, 20 if narrow else 56, seed=0), randn(48, 56, seed=1)
    out = 18 if narrow else 48

    def single(x: Tensor, w: Tensor) -> Tensor:
        return two_stream_linear.two_stream_linear((x,), w, None, (out,))[0]

    def slices(x: Tensor, w: Tensor) -> Tensor:
        return (x * (w.shape[1] / x.shape[1])) @ w[:out, : x.shape[1]].T

    with dispatch.using(mode):
        check(single, slices, [x, w], torch.float32)


@pytest.mark.parametrize("mode", ["triton", "auto", "reference"])
def test_in_autocast_it_is_f_linear(mode: str) -> None:
    results = []
    for function in (
        lambda x, w, b: two_stream_linear.two_stream_linear((x,), w, b, (len(w),))[0],
        torch.nn.functional.linear,
    ):
        leaves = [randn(*size, seed=i).float() for i, size in enumerate([(9, 32), (24, 32), (24,)])]
        leaves = [leaf.to(DEVICE).requires_grad_() for leaf in leaves]
        with dispatch.using(mode):
            with torch.autocast(DEVICE, torch.float16):
                y = function(*leaves)
            y.sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        assert torch.allclose(ours.float(), expected.float(), rtol=2e-3, atol=2e-2)
    assert results[0][0].dtype == torch.float16 and results[0][2].dtype == torch.float32


@pytest.mark.parametrize("mode", ["triton", "auto"])
def test_each_parameter_receives_one_gradient_of_its_own_shape(mode: str) -> None:
    xf, xs, w, b = (x.float().to(DEVICE) for x in leaves("odd widths"))
    seen = []
    for parameter in (w, b):
        parameter.requires_grad_()
        parameter.register_hook(lambda g: seen.append((tuple(g.shape), g.is_contiguous())))
    with dispatch.using(mode):
        ys = two_stream_linear.two_stream_linear((xf, xs), w, b, (96, 33))
        sum(y.sum() for y in ys).backward()
    assert sorted(seen) == [((96,), True), ((96, 80), True)]


@pytest.mark.parametrize("mode", ["triton", "auto"])
def test_a_gathered_weight_can_be_freed_between_forward_and_backward(mode: str) -> None:
    """What ZeRO-3 does: the data of the parameter go after the forward, come back for backward."""
    xf, xs, w, b = (x.float().to(DEVICE) for x in leaves("qkv"))
    weight, bias = torch.nn.Parameter(w.clone()), torch.nn.Parameter(b)
    xf, xs = xf.requires_grad_(), xs.requires_grad_()
    with dispatch.using(mode):
        ys = two_stream_linear.two_stream_linear((xf, xs), weight, bias, (144, 96))
        storage = weight.untyped_storage()._weak_ref()
        weight.data = torch.empty(0, device=DEVICE)
        gc.collect()  # the interpreter's launches are reference cycles
        assert torch.UntypedStorage._expired(storage), "something still holds the gathered weight"
        weight.data = w.clone()
        sum(y.square().sum() for y in ys).backward()
    expected = w.clone().requires_grad_()
    sum(y.square().sum() for y in plain(xf, xs, expected, bias, 96)).backward()
    assert torch.allclose(weight.grad, expected.grad, rtol=1e-4, atol=1e-3)

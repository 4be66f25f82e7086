"""The photometric kernels against the batched PyTorch code, which is tested against torchvision."""

import random

import pytest
import torch
from torch import Tensor

from poa_ds.data.image import photometric as batched
from poa_kernels import dispatch
from poa_kernels.photometric import Changes, photometric
from tests.kernels.truth import DEVICE
from tests.support.published import COLOURS

SPEC = COLOURS
NORMAL = {"taps": SPEC.blur_kernel, "mean": SPEC.mean, "std": SPEC.std}


def crops_of(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator).to(torch.uint8)


def drawn(count: int) -> batched.Photometric:
    rng = random.Random(0)
    return batched.Photometric.stack([batched.draw(rng, SPEC, i % 3) for i in range(count)])


def in_pytorch(crops: Tensor, params: batched.Photometric) -> Tensor:
    with dispatch.using("reference"):  # apply() would take the kernels too
        return batched.apply(crops, params, SPEC)


def on_device(p: batched.Photometric) -> Changes:
    tensors = (p.factors, p.order.int(), p.grey, p.sigma, p.solarize)
    return Changes(*[tensor.to(DEVICE) for tensor in tensors])


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("shape", [(24, 16, 16), (5, 13, 31), (1, 6, 5), (0, 8, 8)])
def test_it_is_the_batched_code(mode: str, shape: tuple[int, int, int]) -> None:
    crops, params = crops_of(*shape), drawn(shape[0])
    expected = in_pytorch(crops, params)
    with dispatch.using(mode):
        got = photometric(crops.to(DEVICE), on_device(params), **NORMAL).cpu()
    assert got.dtype == torch.float32 and got.shape == expected.shape
    far = (got - expected).abs() > 2e-5  # divided by std: 5e-6 of the pixel range
    # a value within rounding of the solarisation threshold may fall on either side
    assert not far[~params.solarize].any()
    assert far.float().mean() < 1e-4 if far.numel() else True


def test_every_order_of_the_changes() -> None:
    orders = torch.tensor(batched.ORDERS)
    n = len(orders)
    still = torch.zeros(n, dtype=torch.bool)
    factors = torch.tensor([[1.3, 0.7, 1.4, -0.2]]).repeat(n, 1)
    params = batched.Photometric(factors, orders, still, torch.zeros(n), still)
    crops = crops_of(1, 9, 11).repeat(n, 1, 1, 1)
    got = photometric(crops.to(DEVICE), on_device(params), **NORMAL).cpu()
    assert (got - in_pytorch(crops, params)).abs().max() < 2e-5


def test_neither_crops_nor_changes_need_be_contiguous() -> None:
    crops, params = crops_of(4, 20, 10).to(DEVICE)[:, :, ::2], on_device(drawn(4))
    apart = {name: torch.stack((x, x), -1)[..., 0] for name, x in vars(params).items()}
    assert not any(x.is_contiguous() for x in (crops, *apart.values()))
    got = photometric(crops, Changes(**apart), **NORMAL)
    assert torch.equal(got, photometric(crops.contiguous(), params, **NORMAL))


def test_the_batch_takes_the_kernels_where_they_are_chosen() -> None:
    crops, params = crops_of(6, 8, 8), drawn(6)
    got = batched.apply(crops.to(DEVICE), params, SPEC)
    assert torch.equal(got, photometric(crops.to(DEVICE), on_device(params), **NORMAL))
    assert (got.cpu() - in_pytorch(crops, params)).abs().max() < 2e-5

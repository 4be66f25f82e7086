"""ElasticResNet against the published features and gradients, and a count of its work."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from poa_ds.model.resnet.names import from_published
from poa_ds.model.resnet.network import ElasticResNet
from poa_ds.model.resnet.shape import ResNetShape
from poa_ds.model.space import ElasticSpace, Subnet
from tests.conftest import shared
from tests.model.swin.test_network import load

STAGES = (1, 3, 4, 1)
SIZES = tuple(sorted(((1, a, b, 1) for a in (1, 2, 3) for b in (2, 3, 4)), key=sum))
SPACE = ElasticSpace((8, 12, 16), SIZES, 2.0, width_bias=1.0)


def published_model(dtype: torch.dtype) -> ElasticResNet:
    model = ElasticResNet(SPACE, image_size=64, norm_groups=4, stem=12)
    state = from_published(load("02_resnet/state_dict.npz"), STAGES)
    model.load_state_dict(state, strict=True)
    return model.to(dtype)


def size(name: str) -> Subnet:
    """w12-24-48-96_d1-2-3-1 -> 12x1-2-3-1."""
    width, depth = name.split("_")
    return Subnet(int(width[1:].split("-")[0]), tuple(map(int, depth[1:].split("-"))))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_features_of_every_size_are_the_published_ones(
    dtype: torch.dtype, tolerance: float
) -> None:
    """64 px with and without masks, 32 px, and 48 px, whose maps have odd sides."""
    model, inputs = published_model(dtype), load("02_resnet/inputs.npz")
    compared = 0
    for key, expected in load("02_resnet/outputs_f64.npz").items():
        name, tag, *kind = key.split("/")
        if kind not in (["x_norm_clstoken"], ["x_norm_patchtokens"]):
            continue
        side, masked = tag.rstrip("m"), tag.endswith("m")
        mask = inputs[f"mask{side}"] if masked else None
        with torch.no_grad():
            tokens = model(inputs[f"img{side}"].to(dtype), size(name), mask)
        got = tokens[:, 0] if kind == ["x_norm_clstoken"] else tokens[:, 1:]
        assert (got - expected).abs().max() < tolerance, key
        compared += 1
    assert compared >= 24


def test_gradients_are_the_published_ones() -> None:
    model, inputs = published_model(torch.float64), load("02_resnet/inputs.npz")
    wanted = load("02_resnet/grad_net2_64m.npz")
    case = json.loads(shared("golden/02_resnet/case.json").read_text())
    subnet = size(case["networks_checked"][2]["name"])
    tokens = model(inputs["img64"].double(), subnet, inputs["mask64"])
    loss = (tokens[:, 0] * wanted.pop("_wc")).sum() + (tokens[:, 1:] * wanted.pop("_wp")).sum()
    loss.backward()

    def gradient(published: str) -> torch.Tensor | None:
        names = from_published({published: torch.zeros(1)}, STAGES)
        return model.get_parameter(next(iter(names))).grad

    for name, expected in wanted.items():
        assert torch.allclose(gradient(name), expected, rtol=1e-8, atol=1e-9), name
    norms = case["grad"]["grad_norm_all"]
    for name, norm in norms.items():
        got = gradient(name)
        assert (got is None) if norm is None else abs(got.norm().item() / norm - 1) < 1e-8, name
    assert len(norms) > 60


def small_model() -> ElasticResNet:
    torch.manual_seed(0)
    depths = tuple(sorted(((1, a, b, 1) for a in (1, 2) for b in (1, 2, 3)), key=sum))
    space = ElasticSpace((8, 12, 16), depths, width_bias=1.0)
    model = ElasticResNet(space, image_size=32, norm_groups=4).double()
    for name, p in model.named_parameters():
        if p.ndim == 1 or "mask" in name:
            p.data += 0.3 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lockstep_equals_one_pass_per_crop_size_and_student(checkpointing: bool) -> None:
    model = small_model()
    large, small = torch.randn(3, 3, 64, 64).double(), torch.randn(4, 3, 24, 24).double()
    masks, subnets = torch.rand(3, 16) < 0.4, (Subnet(16, (1, 2, 3, 1)), Subnet(12, (1, 1, 2, 1)))

    def gradients(tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        sum((t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in tokens).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = [model(x, s, m) for s in subnets for x, m in ((large, masks), (small, None))]
    wanted = gradients(plain)
    model.activation_checkpointing = checkpointing
    packed = [t for crops in model.streams((large, small), subnets, (masks, None)) for t in crops]
    for a, b in zip(plain, packed, strict=True):
        assert (a - b).abs().max() < 1e-11
    for a, b in zip(wanted, gradients(packed), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_every_block_is_entered_once_with_all_maps() -> None:
    model, seen = small_model(), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(
            lambda _, inputs, outputs, i=i: seen.append((i, len(inputs), len(outputs)))
        )
    crops = (torch.randn(2, 3, 32, 32).double(), torch.randn(2, 3, 16, 16).double())
    model.streams(crops, (Subnet(16, (1, 2, 3, 1)), Subnet(8, (1, 1, 1, 1))), (None, None))
    assert seen == [(i, 4, 4) for i in range(7)]


@pytest.mark.parametrize("side", [64, 40])
def test_flops_and_parameters_are_those_that_hooks_count(side: int) -> None:
    model = small_model().float()
    sizes = [Subnet(16, (1, 2, 3, 1)), Subnet(12, (1, 1, 2, 1)), Subnet(8, (1, 1, 1, 1))]
    for subnet in sizes:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.randn(1, 3, side, side), subnet)
        assert model.flops(subnet, side) == counter.get_total_flops(), subnet
    whole = sum(p.numel() for n, p in model.named_parameters() if "mask_token" not in n)
    assert model.parameter_count(sizes[0]) == whole


def test_named_sizes_have_the_parameters_of_the_usual_resnets() -> None:
    numbers = {"image_size": 224, "norm_groups": 32, "stem": 64}
    shape = ResNetShape(widest=128, stages=(3, 8, 36, 3), **numbers)
    counted = [
        shape.parameters(Subnet(64, d)) for d in ((3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3))
    ]
    # torchvision's counts without the classifier (2048 x 1000 + 1000): norms have as many
    assert counted == [25_557_032 - 2_049_000, 44_549_160 - 2_049_000, 60_192_808 - 2_049_000]

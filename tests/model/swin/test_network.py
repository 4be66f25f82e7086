"""ElasticSwin against the published features, gradients and step, and a count of its work."""

import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from poa_ds.model.backbone import DropPath
from poa_ds.model.packing import Packing
from poa_ds.model.row_orders import third_major
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.swin import windows
from poa_ds.model.swin.names import from_published, to_published
from poa_ds.model.swin.network import ElasticSwin, position_major
from poa_ds.recipe.backbone import backbone
from tests.conftest import shared
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES

STAGES, HEAD_DIM = (2, 2, 6, 2), 8
SPACE = ElasticSpace((8, 16, 24), (2, 3, 4, 5, 6), 2.0)


def load(path: str) -> dict[str, torch.Tensor]:
    with np.load(shared("golden") / path) as arrays:
        return {
            name: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float16 else a)
            for name, a in ((name, arrays[name]) for name in arrays.files)
        }


def published_model(dtype: torch.dtype) -> ElasticSwin:
    model = ElasticSwin(SPACE, stages=STAGES, image_size=64, head_dim=HEAD_DIM)
    state = load("02_swin/state_dict.npz")
    model.load_state_dict(from_published(state, STAGES, HEAD_DIM), strict=True)
    return model.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_features_of_every_size_are_the_published_ones(
    dtype: torch.dtype, tolerance: float
) -> None:
    """64 px with and without masks, 32 px, and 48 px, whose maps have odd sides."""
    model, inputs = published_model(dtype), load("02_swin/inputs.npz")
    compared = 0
    for key, expected in load("02_swin/outputs_f64.npz").items():
        size, tag, *kind = key.split("/")
        if kind not in (["x_norm_clstoken"], ["x_norm_patchtokens"]):
            continue
        width, depth = (int(part[1:]) for part in size.split("_"))
        side, masked = tag.rstrip("m"), tag.endswith("m")
        mask = inputs[f"mask{side}"] if masked else None
        with torch.no_grad():
            tokens = model(inputs[f"img{side}"].to(dtype), Subnet(width, depth), mask)
        got = tokens[:, 0] if kind == ["x_norm_clstoken"] else tokens[:, 1:]
        assert (got - expected).abs().max() < tolerance, key
        compared += 1
    assert compared >= 32


def test_gradients_are_the_published_ones() -> None:
    model, inputs = published_model(torch.float64), load("02_swin/inputs.npz")
    wanted = load("02_swin/grad_w16_d4_64m.npz")
    tokens = model(inputs["img64"].double(), Subnet(16, 4), inputs["mask64"])
    loss = (tokens[:, 0] * wanted.pop("_wc")).sum() + (tokens[:, 1:] * wanted.pop("_wp")).sum()
    loss.backward()

    def gradient(published: str) -> torch.Tensor | None:
        names = from_published({published: torch.zeros(24)}, STAGES, HEAD_DIM)
        return model.get_parameter(next(iter(names))).grad if names else None

    for name, expected in wanted.items():
        got = gradient(name)
        got = third_major(got, HEAD_DIM) if ".qkv." in name else got
        got = position_major(got) if ".downsample." in name else got
        assert torch.allclose(got, expected, rtol=1e-8, atol=1e-9), name
    norms = json.loads(shared("golden/02_swin/case.json").read_text())["grad"]["grad_norm_all"]
    for name, norm in norms.items():
        got = gradient(name)
        assert (got is None) if norm is None else abs(got.norm().item() / norm - 1) < 1e-8, name
    assert len(norms) > 100


def small_model() -> ElasticSwin:
    torch.manual_seed(0)
    space = ElasticSpace((16, 24, 32), (2, 3, 4))
    numbers = {"patch_size": 2, "head_dim": 8, "window": 3, "mlp_ratio": 2}
    model = ElasticSwin(space, stages=(1, 1, 4, 1), image_size=32, **numbers).double()
    for name, p in model.named_parameters():
        if p.ndim == 1 or "position_bias" in name or "mask" in name:
            p.data += 0.3 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lockstep_equals_one_pass_per_crop_size_and_student(checkpointing: bool) -> None:
    model = small_model()
    large, small = torch.randn(3, 3, 32, 32).double(), torch.randn(4, 3, 12, 12).double()
    masks, subnets = torch.rand(3, 16) < 0.4, (Subnet(32, 4), Subnet(24, 3))

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


def test_every_block_is_entered_once_with_all_streams() -> None:
    model, seen = small_model(), []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(
            lambda _, inputs, outputs, i=i: seen.append((i, len(inputs), len(outputs)))
        )
    crops = (torch.randn(2, 3, 32, 32).double(), torch.randn(2, 3, 16, 16).double())
    model.streams(crops, (Subnet(32, 4), Subnet(16, 2)), (None, None))
    assert seen == [(i, 2, 2) for i in range(7)]


def test_windows_are_laid_out_once_per_size_of_map_and_serve_training_afterwards() -> None:
    windows.windows.cache_clear()
    windows.relative_positions.cache_clear()
    model, images = small_model(), torch.randn(2, 3, 32, 32).double()
    with torch.inference_mode():
        model(images, Subnet(32, 4))
    made = windows.windows.cache_info().misses
    model(images, Subnet(24, 3)).sum().backward()  # not from tensors of inference
    assert windows.windows.cache_info().misses == made == 5  # sides 16, 8, 4 and 2; one shifted


def test_masks_have_the_precision_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused attention of GPUs takes no mask of another type."""
    seen, attention = set(), windows.F.scaled_dot_product_attention

    def recorded(q: torch.Tensor, *others: torch.Tensor, attn_mask: torch.Tensor) -> torch.Tensor:
        seen.add((q.dtype, attn_mask.dtype))
        return attention(q, *others, attn_mask=attn_mask)

    model, images = small_model(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = model(images, Subnet(24, 3))
        monkeypatch.setattr(windows.F, "scaled_dot_product_attention", recorded)
        found = model.half()(images, Subnet(24, 3))
    assert seen == {(torch.float16, torch.float16)}
    assert (found - wanted).norm() / wanted.norm() < 1e-2


def test_stochastic_depth_drops_images_more_often_in_later_blocks() -> None:
    model, subnets = small_model(), (Subnet(32, 4), Subnet(16, 2))
    crops = [torch.randn(400, 3, 8, 8).double(), torch.randn(800, 3, 4, 4).double()]
    packing = model.packing(crops)
    assert model.draw_drop_path(packing, subnets, 0.0, torch.Generator(), "cpu") is None

    def draw() -> list:
        rng = torch.Generator().manual_seed(3)
        drop_path = model.draw_drop_path(packing, subnets, 0.6, rng, "cpu")
        return [drop_path.of_block(i) for i in range(len(model.blocks))]

    drops = draw()
    assert [row[1] is None for row in drops] == [not i for i in (1, 1, 1, 0, 0, 1, 1)]
    shares = [(row[0][0] > 0).float().mean().item() for row in drops]
    assert shares[0] == 1 and abs(shares[-1] - 0.4) < 0.05 and abs(shares[3] - 0.7) < 0.05
    assert drops[-1][0][0].max() == pytest.approx(1 / 0.4)
    assert all(torch.equal(a[0][1], b[0][1]) for a, b in zip(drops, draw(), strict=True))
    none = torch.zeros(400)
    everything = DropPath((((none, none),),) * len(drops))
    with torch.no_grad():
        only_merges = model.streams(crops[:1], subnets[:1], [None], everything)[0][0]
        assert only_merges.isfinite().all()
        model.blocks[2].attn.proj.weight.zero_()
        again = model.streams(crops[:1], subnets[:1], [None], everything)[0][0]
    assert torch.equal(only_merges, again)  # nothing of a dropped branch arrives


def test_the_draws_of_stochastic_depth_are_those_of_one_block_after_the_other() -> None:
    """As they were drawn in the runs of former versions: a resumed run drops the same images."""
    model, packing = small_model(), Packing(((5, 16), (9, 4)))
    subnets, rate = (Subnet(32, 4), Subnet(16, 2)), 0.3
    drop_path = model.draw_drop_path(
        packing, subnets, rate, torch.Generator().manual_seed(7), "cpu"
    )
    rng, last = torch.Generator().manual_seed(7), len(model.blocks) - 1
    for index in range(len(model.blocks)):
        keep, row = 1 - rate * index / last, drop_path.of_block(index)
        found = [factors for drop in row if drop for factors in drop]
        draws = torch.rand(len(found), 14, generator=rng)
        assert torch.equal(torch.stack(found), (draws < keep).float() / keep), index


@pytest.mark.parametrize("side", [32, 20])
def test_flops_and_parameters_are_those_that_hooks_count(side: int) -> None:
    model = small_model().float()
    for subnet in (Subnet(32, 4), Subnet(24, 3), Subnet(16, 2)):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                model(torch.randn(1, 3, side, side), subnet)
        assert model.flops(subnet, side) == counter.get_total_flops(), subnet
    whole = sum(p.numel() for n, p in model.named_parameters() if "mask_token" not in n)
    assert model.parameter_count(Subnet(32, 4)) == whole


def test_a_slice_that_no_published_swin_is_is_not_called_one() -> None:
    whole = backbone(recipe_with(backbone=BACKBONES["swin"]))
    assert len(to_published(whole.state_dict())) > len(whole.state_dict())
    was_slice = backbone(recipe_with(backbone=BACKBONES["swin"] | {"projected": 64}))
    with pytest.raises(ValueError, match=r"64 channels and the network 32 \(backbone\.projected"):
        to_published(was_slice.state_dict())

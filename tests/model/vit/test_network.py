"""ElasticViT against the published features and gradients of every stored size and resolution."""

import json
from dataclasses import astuple

import numpy as np
import pytest
import torch

from poa_ds.model.packing import Packing, draw_drops
from poa_ds.model.row_orders import third_major
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit.names import from_published
from poa_ds.model.vit.network import ElasticViT
from poa_kernels.add_ln import Rows, add_rows
from tests.conftest import shared

SPACE = ElasticSpace(tuple(range(64, 193, 32)), (3, 4, 5, 6), 3.0)


def load(path: str) -> dict[str, torch.Tensor]:
    with np.load(shared("golden/01_vit") / path) as arrays:
        return {
            name: torch.from_numpy(a.astype(np.float32) if a.dtype == np.float16 else a)
            for name, a in ((name, arrays[name]) for name in arrays.files)
        }


def published_model(dtype: torch.dtype) -> ElasticViT:
    model = ElasticViT(SPACE, image_size=64, head_dim=32)
    model.load_state_dict(from_published(load("state_dict.npz"), head_dim=32), strict=True)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_of_every_size_are_the_published_ones(dtype: torch.dtype) -> None:
    model, inputs, outputs = published_model(dtype), load("inputs.npz"), load("outputs_f64.npz")
    compared = 0
    for key, expected in outputs.items():
        size, tag, *kind = key.split("/")
        if kind not in (["x_norm_clstoken"], ["x_norm_patchtokens"]):
            continue
        width, depth = (int(part[1:]) for part in size.split("_"))
        side, masked = tag.rstrip("m"), tag.endswith("m")
        mask = inputs[f"mask{side}"] if masked else None
        with torch.no_grad():
            tokens = model(inputs[f"img{side}"].to(dtype), Subnet(width, depth), mask)
        got = tokens[:, 0] if kind == ["x_norm_clstoken"] else tokens[:, 1:]
        tolerance = 1e-4 if dtype == torch.float32 else (1e-9 if side == "64" else 1e-5)
        assert (got - expected).abs().max() < tolerance, key
        compared += 1
    assert compared == 44


def test_gradients_are_the_published_ones() -> None:
    model, inputs, wanted = (
        published_model(torch.float64),
        load("inputs.npz"),
        load("grad_w128_d4_64m.npz"),
    )
    tokens = model(inputs["img64"].double(), Subnet(128, 4), inputs["mask64"])
    (
        (tokens[:, 0] * wanted.pop("_wc")).sum() + (tokens[:, 1:] * wanted.pop("_wp")).sum()
    ).backward()
    compared = 0
    for name, expected in wanted.items():
        ours = next(iter(from_published({name: torch.zeros(96)}, head_dim=32)))
        got = model.get_parameter(ours).grad
        if ".qkv." in name:
            got = third_major(got, 32)
        assert torch.allclose(got, expected, rtol=1e-8, atol=1e-9), name
        compared += 1
    norms = json.loads(shared("golden/01_vit/case.json").read_text())["grad"]["grad_norm_all"]
    for name, norm in norms.items():
        ours = next(iter(from_published({name: torch.zeros(96)}, head_dim=32)))
        got = model.get_parameter(ours).grad
        assert (got is None) if norm is None else abs(got.norm().item() / norm - 1) < 1e-8, name
    assert compared > 5


def small_model() -> ElasticViT:
    torch.manual_seed(0)
    space = ElasticSpace((32, 48, 64), (2, 3, 4))
    return ElasticViT(space, image_size=32, patch_size=8, head_dim=16, layer_scale=1.0).double()


def test_sums_in_fp32_keep_what_bf16_rounds_away() -> None:
    """Class tokens of two images, which branches of 1e-5 alone tell apart in a new network."""
    torch.manual_seed(0)
    images, apart = torch.randn(2, 3, 32, 32), {}
    for kind in ("precision", "fp32"):
        torch.manual_seed(0)
        model = ElasticViT(SPACE, image_size=32, patch_size=8, head_dim=32, residual=kind)
        for precision in (torch.float32, torch.bfloat16):
            tokens = model.to(precision)(images, Subnet(128, 4))
            assert tokens.dtype == torch.float32
            apart[kind, precision] = (tokens[0, 0] - tokens[1, 0]).detach()
        tokens.sum().backward()
        assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.bfloat16}
    truth = apart["fp32", torch.float32]
    assert torch.equal(truth, apart["precision", torch.float32]) and truth.norm() > 1e-5
    lost = [(apart[k, torch.bfloat16] - truth).norm() / truth.norm() for k in ("fp32", "precision")]
    assert lost[0] < 0.1 and lost[1] > 0.5, lost


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lockstep_on_packed_crops_equals_one_pass_per_crop_size_and_student(
    checkpointing: bool,
) -> None:
    model = small_model()
    large, small = torch.randn(4, 3, 32, 32).double(), torch.randn(6, 3, 16, 16).double()
    masks = torch.rand(4, 16) < 0.4
    subnets = (Subnet(64, 4), Subnet(48, 3))

    def gradients(tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        model.zero_grad()
        sum((t * torch.linspace(-1, 1, t.numel()).view_as(t)).sum() for t in tokens).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = [model(x, s, m) for s in subnets for x, m in ((large, masks), (small, None))]
    wanted = gradients(plain)
    model.activation_checkpointing = checkpointing
    by_subnet = model.streams((large, small), subnets, (masks, None))
    packed = [tokens for crops in by_subnet for tokens in crops]
    for a, b in zip(plain, packed, strict=True):
        assert (a - b).abs().max() < 1e-12
    for (name, _), a, b in zip(model.named_parameters(), wanted, gradients(packed), strict=True):
        # positions are interpolated in float32, once in place of twice
        limit = 1e-5 if name == "embed.pos_embed" else 1e-11
        assert torch.allclose(a, b, rtol=1e-9, atol=limit), name


def test_stochastic_depth_follows_the_published_numbers() -> None:
    with np.load(shared("golden/10_extras/drop_path_subset.npz")) as z:
        for run in ("b10", "b7", "b3", "b2"):
            x, rows = torch.from_numpy(z[f"{run}/x"]), torch.from_numpy(z[f"{run}/kept"])
            n, tokens, _ = x.shape
            rate = 0.6 if run == "b2" else 0.2
            [drop] = draw_drops(Packing(((n, tokens),)), rate, torch.Generator())
            assert drop.packing.segments == ((len(rows), tokens),)
            # the published choice in the place of ours
            where = (rows[:, None] * tokens + torch.arange(tokens)).flatten()
            added = Rows.of(where, n * tokens, drop.rows.factor)
            rows, ones = x.flatten(0, 1), x.new_ones(x.shape[-1])
            got = add_rows(rows, 2 * rows[where] + 1, ones, added=added)
            assert torch.allclose(got.view_as(x), torch.from_numpy(z[f"{run}/y"]), atol=1e-12)


def one_by_one(packing: Packing, rate: float, rng: torch.Generator) -> tuple[list, Rows]:
    """What draw_drops gives, sequence by sequence."""
    rows, factors, segments, first = [], [], [], 0
    for n, tokens in packing.segments:
        if rate > 0.1:
            chosen = torch.randperm(n, generator=rng)[: max(int(n * (1 - rate)), 1)]
            factor = n / len(chosen) if n else 1.0
        else:
            chosen = (torch.rand(n, generator=rng) >= rate).nonzero().flatten()
            factor = 1 / (1 - rate)
        for sequence in chosen.tolist():
            rows += range(first + sequence * tokens, first + (sequence + 1) * tokens)
            factors += [factor] * tokens
        segments.append((len(chosen), tokens))
        first += n * tokens
    return segments, Rows.of(torch.tensor(rows, dtype=torch.long), first, torch.tensor(factors))


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("segments", [((12, 17), (24, 5)), ((7, 4),), ((0, 4), (3, 2))])
def test_all_branches_together_drop_what_one_after_the_other_would(
    segments: tuple, rate: float
) -> None:
    slow, rng = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for drop in draw_drops(Packing(segments), rate, rng, count=9):
        kept, rows = one_by_one(Packing(segments), rate, slow)
        assert list(drop.packing.segments) == kept
        for ours, wanted in zip(astuple(drop.rows), astuple(rows), strict=True):
            assert ours.dtype == wanted.dtype and torch.equal(ours, wanted)
    assert torch.equal(slow.get_state(), rng.get_state())


def test_stochastic_depth_keeps_its_share_of_each_segment() -> None:
    packing = Packing(((10, 5), (40, 2)))
    [drop] = draw_drops(packing, 0.2, torch.Generator().manual_seed(1))
    assert drop.packing.segments == ((8, 5), (32, 2))
    rows = drop.rows.rows
    assert (rows < 50).sum() == 40 and len(rows.unique()) == 40 + 64
    [sparse] = draw_drops(Packing(((10_000, 1),)), 0.1, torch.Generator().manual_seed(1))
    share = len(sparse.rows.rows) / 10_000
    assert 0.88 < share < 0.92 and sparse.rows.factor[0] == pytest.approx(1 / 0.9)


def test_parameter_count_is_that_of_timm() -> None:
    timm = pytest.importorskip("timm")
    space = ElasticSpace((192, 384), (6, 12))
    model = ElasticViT(space, image_size=224)
    other = timm.create_model("vit_small_patch16_224", num_classes=0, init_values=1e-5)
    assert model.parameter_count(Subnet(384, 12)) == sum(p.numel() for p in other.parameters())

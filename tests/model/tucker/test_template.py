"""Made matrices against slices written out, against autograd by hand, and as plain networks."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from poa_ds.export.extract import extract
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.tucker.network import ElasticTucker
from poa_ds.model.tucker.template import Template

DIM, DEPTH, HEAD, RATIO = 12, 2, 4, 3


def small(ranks: tuple[int, int, int] = (7, 5, 6), std: float = 0.1) -> Template:
    torch.manual_seed(0)
    kind = {"head_dim": HEAD, "mlp_ratio": RATIO}
    return Template(DIM, DEPTH, ranks=ranks, std=std, **kind).double()


def network(ranks: tuple[int, int, int] = (24, 32, 32), **more: object) -> ElasticTucker:
    torch.manual_seed(0)
    space = ElasticSpace((32, 48, 64), (2, 3, 4))
    options = {"image_size": 32, "patch_size": 8, "head_dim": 16, "layer_scale": 1.0}
    return ElasticTucker(space, ranks=ranks, init="torch", **(options | more)).eval()


def slices_of(state: dict[str, Tensor], prefix: str, head_dim: int, ratio: int) -> list[Tensor]:
    """The square slices of one block, row by row and column by column."""
    qkv, proj = state[f"{prefix}attn.qkv.weight"], state[f"{prefix}attn.proj.weight"]
    fc1, fc2 = state[f"{prefix}mlp.fc1.weight"], state[f"{prefix}mlp.fc2.weight"]
    dim = len(proj)
    rows = [
        [3 * head_dim * (a // head_dim) + q * head_dim + a % head_dim for a in range(dim)]
        for q in range(3)
    ]
    first = [fc1[[ratio * a + j for a in range(dim)]] for j in range(ratio)]
    second = [fc2[:, [ratio * b + j for b in range(dim)]] for j in range(ratio)]
    return [*(qkv[row] for row in rows), proj, *first, *second]


def by_hand(template: Template) -> Tensor:
    """(L n, D, D) by the definition, one contraction."""
    return torch.einsum(
        "mi,ijk,aj,bk->mab",
        torch.cat(template.block_factors()),
        template.core,
        template.row_factor,
        template.column_factor,
    )


def state_of(template: Template) -> dict[str, Tensor]:
    """What it makes, by the names of blocks."""
    return {
        f"{i}.{name}.weight": tensor
        for i, made in enumerate(template.blocks())
        for name, tensor in (
            *(("attn.qkv", made.qkv), ("attn.proj", made.proj)),
            *(("mlp.fc1", made.fc1), ("mlp.fc2", made.fc2)),
        )
    }


def test_matrices_are_the_slices_of_the_definition() -> None:
    template, wanted = small(), by_hand(small())
    got = [s for i in range(DEPTH) for s in slices_of(state_of(template), f"{i}.", HEAD, RATIO)]
    torch.testing.assert_close(torch.stack(got), wanted, rtol=1e-12, atol=1e-14)


def test_gradients_are_those_of_the_slices_contracted_with_the_other_factors() -> None:
    template = small()
    weights = [torch.randn_like(t) for t in template()]
    sum((t * w).sum() for t, w in zip(template(), weights, strict=True)).backward()
    named = zip(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"), weights, strict=True)
    state = {f"{i}.{n}.weight": w[i] for n, w in named for i in range(DEPTH)}
    d = torch.stack([s for i in range(DEPTH) for s in slices_of(state, f"{i}.", HEAD, RATIO)])
    x, g = torch.cat(template.block_factors()).detach(), template.core.detach()
    u, v = template.row_factor.detach(), template.column_factor.detach()
    wanted = {
        "core": torch.einsum("mab,mi,aj,bk->ijk", d, x, u, v),
        "row_factor": torch.einsum("mab,mi,ijk,bk->aj", d, x, g, v),
        "column_factor": torch.einsum("mab,mi,ijk,aj->bk", d, x, g, u),
    }
    for name, gradient in wanted.items():
        torch.testing.assert_close(getattr(template, name).grad, gradient, rtol=1e-11, atol=1e-13)
    got = torch.cat([factor.grad for factor in template.block_factors()])
    torch.testing.assert_close(
        got, torch.einsum("mab,aj,ijk,bk->mi", d, u, g, v), rtol=1e-11, atol=1e-13
    )


def test_a_slice_of_the_factors_makes_the_slice_of_every_matrix() -> None:
    whole, width = small(), 8
    part = Template(width, DEPTH, head_dim=HEAD, mlp_ratio=RATIO, ranks=(7, 5, 6), std=1.0).double()
    with torch.no_grad():
        part.core.copy_(whole.core)
        part.row_factor.copy_(whole.row_factor[:width])
        part.column_factor.copy_(whole.column_factor[:width])
        for mine, other in zip(part.block_factors(), whole.block_factors(), strict=True):
            mine.copy_(other)
    for made, full in zip(part(), whole(), strict=True):
        rows, columns = made.shape[1:]
        torch.testing.assert_close(made, full[:, :rows, :columns], rtol=1e-12, atol=1e-14)


def test_two_blocks_with_equal_scalers_are_the_same_block() -> None:
    template = small()
    with torch.no_grad():
        template.block_factors_1.copy_(template.block_factors_0)
    one, other = template.blocks()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("init", "std"), [("published", 0.02), ("torch", 192**-0.5)])
def test_entries_start_with_the_deviation_of_the_initialisation(init: str, std: float) -> None:
    torch.manual_seed(1)
    space = ElasticSpace((64,), (3,))
    model = ElasticTucker(
        space, image_size=32, patch_size=8, head_dim=16, init=init, ranks=(36, 20, 50)
    )
    entries = torch.cat([made.flatten() for made in model.template()])
    assert entries.std().item() == pytest.approx(std, rel=0.05)
    biases = [layer.bias for name, layer in model.named_modules() if name.endswith("fc1")]
    assert all(bool(bias.any()) == (init == "torch") for bias in biases)


def test_noise_scales_channels_of_the_template() -> None:
    template = small()
    noise = template.draw_noise(0.3, torch.Generator().manual_seed(3))
    for factors in (noise.rows, noise.columns):
        assert factors.min() >= 0.7 and factors.max() <= 1.3 and factors.std() > 0.05
    noisy = template(noise)
    with torch.no_grad():
        template.core.mul_(noise.rows.double()[:, None] * noise.columns.double())
    for a, b in zip(noisy, template(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [Subnet(64, 4), Subnet(48, 3), Subnet(32, 2)])
def test_every_size_is_extracted_as_a_plain_vit(size: Subnet) -> None:
    import timm

    model, images = network(), torch.randn(2, 3, 32, 32)
    state = extract(model, size)
    assert not any("factor" in name or "core" in name for name in state)
    plain, theirs = (
        state.network().eval(),
        timm.create_model("vit_small_patch16_224", num_classes=0, **state.arguments).eval(),
    )
    theirs.load_state_dict(dict(state))
    with torch.inference_mode():
        wanted = model(images, size)
        assert wanted.std() > 0.1
        for other in (plain, theirs):
            torch.testing.assert_close(other.forward_features(images), wanted, rtol=0, atol=1e-5)


def test_extraction_of_low_precision_factors_makes_matrices_in_float32() -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    wanted, got = extract(model, Subnet(48, 3)), extract(model.bfloat16(), Subnet(48, 3))
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_checkpointed_activations_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        model = network(activation_checkpointing=again).train()
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
        sizes = (Subnet(64, 4), Subnet(32, 2))
        tokens = model.streams((images,), sizes, (None,))
        sum(rearrange(t[0], "n t c -> (n t) c").pow(2).mean() for t in tokens).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        if name != "embed.mask_token":
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-8)

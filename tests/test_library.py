"""The library as docs/howto/library.md tells it: its names, its example, its strictness."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import poa_ds
from poa_ds import ElasticResNet, ElasticSpace, ElasticSwin, ElasticViT, HeadBank, Subnet
from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.model.branch import Branch
from tests.conftest import shared
from tests.export.test_folder import made

LIBRARY = Path(__file__).parents[1] / "docs/howto/library.md"
STAGED = ((1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 2, 1))
MODELS = {
    "vit": lambda: ElasticViT(ElasticSpace((32, 64), (2, 3)), image_size=64, head_dim=32),
    "swin": lambda: ElasticSwin(
        ElasticSpace((16, 32), (2, 4)), stages=(1, 1, 4, 1), image_size=64, head_dim=8
    ),
    "resnet": lambda: ElasticResNet(ElasticSpace((8, 16), STAGED), image_size=64, norm_groups=4),
}
OUTSIDE = {"vit": Subnet(48, 3), "swin": Subnet(32, 5), "resnet": Subnet(16, (1, 1, 3, 1))}
GOLDEN = {"vit": "01_vit", "swin": "02_swin", "resnet": "02_resnet"}
HEAD_DIM = 32  # of the published golden ViT


def golden(path: str) -> dict[str, torch.Tensor]:
    with np.load(shared("golden") / path) as arrays:
        return {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}


def moved(kind: str) -> torch.nn.Module:
    """A model of random weights, norms and masks among them."""
    torch.manual_seed(0)
    model = MODELS[kind]()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    return model.requires_grad_(False)


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    space = ElasticSpace((32, 64, 96), (2, 3, 4))
    made = Branch(
        ElasticViT(space, image_size=64, head_dim=32),
        HeadBank(96, (16, 24, 32, 48), hidden=64, bottleneck=16),
    )
    backbone = poa_ds.to_published(made.backbone.state_dict(), kind="vit", head_dim=32)
    heads = poa_ds.heads_to_published(made.heads.state_dict())
    state = {f"backbone.{name}": t for name, t in backbone.items()}
    state |= {f"dino_head.{name}": t for name, t in heads.items()}
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": state}, "teacher_checkpoint.pth")
    code = re.search(r"```python\n(.*?)```", LIBRARY.read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, str(LIBRARY), "exec"), names)
    assert torch.isfinite(names["terms"].koleo)
    before = made.backbone.embed.pos_embed
    assert not torch.equal(names["student"].backbone.embed.pos_embed, before)
    assert not torch.equal(names["teacher"].backbone.embed.pos_embed, before)
    assert names["plain"]["blocks.2.mlp.fc2.weight"].shape == (64, 256)


def test_every_name_is_there_documented_and_imported_when_it_is_asked_for() -> None:
    documented = set(re.findall(r"\w+", poa_ds.__doc__))
    for name in poa_ds.__all__:
        assert getattr(poa_ds, name) is not None and name in dir(poa_ds) and name in documented
    with pytest.raises(AttributeError, match=r"module 'poa_ds' has no attribute 'lode'"):
        poa_ds.lode  # noqa: B018
    program = (
        "import sys, poa_ds; assert not {'torch', 'numpy', 'yaml'} & set(sys.modules);"
        "poa_ds.Subnet(8, 2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("kind", MODELS)
def test_a_size_outside_of_the_space_is_refused_everywhere(kind: str) -> None:
    model, outside, images = moved(kind), OUTSIDE[kind], torch.randn(1, 3, 64, 64)
    for call in (
        lambda: model(images, outside),
        lambda: model.streams([images], (model.space.intact, outside), [None]),
        lambda: poa_ds.extract(model, outside),
        lambda: model.parameter_count(outside),
        lambda: model.feature_width(outside),
        lambda: model.flops(outside, 64),
        lambda: model.members(outside),
        lambda: model.space.cost(outside),
    ):
        with pytest.raises(ValueError, match=rf"size {outside} is not in the space: WIDTHxDEPTH"):
            call()


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda s: ElasticViT(s((48, 64), (2,)), image_size=64, head_dim=32), "48 is not a mul"),
        (lambda s: ElasticViT(s((64,), (2,)), image_size=60), "60 is not a multiple of patch_si"),
        (
            lambda s: ElasticSwin(s((32,), (2, 6)), stages=(2, 2, 4, 2), image_size=64),
            r"stages \(2, 2, 4, 2\): the third of four must be the largest depth, 6",
        ),
        (lambda s: ElasticSwin(s((24,), (2,)), stages=(1, 1, 2, 1), image_size=64), "24 is not"),
        (lambda s: ElasticResNet(s((16,), (3,)), image_size=64, norm_groups=4), "depth 3 is no"),
        (lambda s: ElasticResNet(s((16,), STAGED), image_size=64), "16 is not a multiple of norm"),
        (
            lambda s: ElasticResNet(
                s((8,), ((2, 1, 1, 1), (1, 2, 2, 1))), image_size=64, norm_groups=4
            ),
            "depth 2-1-1-1 is no part of 1-2-2-1",
        ),
    ],
)
def test_a_backbone_that_contradicts_its_space_is_refused(build, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(ElasticSpace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MODELS)
def test_an_extracted_state_runs_without_a_recipe(kind: str, dtype: torch.dtype) -> None:
    model, images = moved(kind).to(dtype), torch.randn(2, 3, 64, 64, dtype=dtype)
    for subnet in model.space.subnets():
        state = poa_ds.extract(model, subnet, dtype)
        assert isinstance(state, dict) and all(t.dtype == dtype for t in state.values())
        network = state.network()
        wanted = model(images, subnet)[:, 0]
        assert (network(images) - wanted).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)
        if kind == "swin":
            assert state.arguments["projected"] == 32 and len(state.arguments["shifted"]) == 4


@pytest.mark.parametrize("kind", MODELS)
def test_a_run_is_loaded_in_one_call(kind: str, tmp_path: Path) -> None:
    made(kind, tmp_path) if kind != "vit" else made_vit(tmp_path)
    elastic, images = poa_ds.load(tmp_path), torch.randn(2, 3, 64, 64)
    subnet = elastic.space.smallest
    for size in (str(subnet), subnet):
        plain = poa_ds.load(str(tmp_path), size, step=7)
        assert not plain.training and not any(p.requires_grad for p in plain.parameters())
        assert (plain(images) - elastic(images, subnet)[:, 0]).abs().max() < 1e-5
    for size in ("17x3", "giant", Subnet(17, 3)):
        with pytest.raises(ValueError, match="not in the space"):
            poa_ds.load(tmp_path, size)


def made_vit(folder: Path) -> None:
    from poa_ds.checkpoint.deployed import publish
    from poa_ds.recipe import load
    from poa_ds.recipe.backbone import backbone

    options = {
        "width": {"min": 32, "max": 64, "step": 32},
        "depth": {"min": 2, "max": 3, "step": 1},
    }
    tree = {"backbone": options | {"head_dim": 32}, "crops": {"global_size": 64, "local_size": 32}}
    recipe = load.from_dict(tree)
    state = {f"backbone.{n}": t for n, t in backbone(recipe).state_dict().items()}
    publish(folder, state, recipe, 7)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
@pytest.mark.parametrize("kind", MODELS)
def test_published_states_go_there_and_back(kind: str, prefix: str) -> None:
    state = golden(f"{GOLDEN[kind]}/state_dict.npz")
    named = {prefix + name: tensor for name, tensor in state.items()}
    if prefix:  # as in a teacher: heads are left out
        named |= {f"{prefix.removesuffix('backbone.')}dino_head.mlp0.0.bias": torch.zeros(2)}
    back = poa_ds.to_published(
        poa_ds.from_published(named, kind=kind, head_dim=HEAD_DIM), kind=kind, head_dim=HEAD_DIM
    )
    assert back.keys() == state.keys()
    unused = re.compile(r"norm[012]\.norm\." if kind == "swin" else "$^")
    for name, tensor in state.items():
        if unused.match(name):
            assert torch.equal(back[name], torch.full_like(tensor, float(name.endswith("weight"))))
        else:
            assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_published_heads_go_there_and_back(layers: int) -> None:
    state = golden(f"03_head/state_dict_nl{layers}.npz")
    back = poa_ds.heads_to_published(poa_ds.heads_from_published(state))
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)


@pytest.mark.parametrize("kind", MODELS)
def test_a_published_state_that_does_not_fit_is_refused(kind: str) -> None:
    state = golden(f"{GOLDEN[kind]}/state_dict.npz")
    for other in set(MODELS) - {kind}:
        with pytest.raises(ValueError, match=rf"kind '{other}'.*they are a (ViT|Swin|ResNet)"):
            poa_ds.from_published(state, kind=other, head_dim=HEAD_DIM)
    left_over = state | {"blocks.0.attn.extra.weight": torch.zeros(3)}
    missing = {name: t for name, t in state.items() if name != "mask_token"}
    for changed, words in ((left_over, "unexpected: .*extra"), (missing, "missing: .*mask_token")):
        with pytest.raises(ValueError, match=words):
            poa_ds.from_published(changed, kind=kind, head_dim=HEAD_DIM)
    with pytest.raises(ValueError, match="kind 'mixer' is not one of vit, swin, resnet"):
        poa_ds.from_published(state, kind="mixer")


def test_a_backbone_that_nobody_has_published_has_no_published_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "bag", "tests.toys.bag")
    with pytest.raises(ValueError, match=r"kind 'bag' is not one of vit, swin, resnet$"):
        poa_ds.to_published({}, kind="bag")
    with pytest.raises(ValueError, match="they are a ViT"):
        poa_ds.from_published(golden("01_vit/state_dict.npz"), kind="swin")


def test_heads_of_another_width_than_the_vit_s_are_refused() -> None:
    state = golden("01_vit/state_dict.npz")
    with pytest.raises(ValueError, match="kind 'vit'"):
        poa_ds.from_published(state, kind="vit", head_dim=80)


def test_a_slice_of_heads_is_a_bank_of_the_same_heads() -> None:
    heads, x = HeadBank(24, (5, 6, 7), hidden=16, bottleneck=8), torch.randn(3, 24)
    part = heads[1:]
    assert isinstance(part, HeadBank) and part[0] is heads[1]
    for got, wanted in zip(part.scores(x), heads.scores(x)[1:], strict=True):
        assert torch.equal(got, wanted)
    assert len(heads[:0]) == 0 and heads[-1] is heads[2]

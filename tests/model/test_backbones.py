"""Swin and ResNet through the same step, sizes, parameter groups and recipes as the ViT."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from poa_ds.data.batch import Batch
from poa_ds.engine import optim
from poa_ds.export.published import heads_from_published
from poa_ds.methods import targets
from poa_ds.methods.terms import slot_terms
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank
from poa_ds.model.resnet import names as resnet_names
from poa_ds.model.resnet.network import ElasticResNet
from poa_ds.model.row_orders import third_major
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.swin import names as swin_names
from poa_ds.model.swin.network import ElasticSwin, position_major
from poa_ds.model.vit.names import from_published
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Objective, Recipe
from tests.conftest import shared

FOLDER = Path(__file__).parents[2] / "ds_configs"

STEPS = {
    "swin": (
        "ibot_w8_d2",
        lambda: ElasticSwin(
            ElasticSpace((8, 16), (2, 3), 2.0), stages=(1, 1, 3, 1), image_size=64, head_dim=8
        ),
        lambda state: swin_names.from_published(state, (1, 1, 3, 1), 8),
    ),
    "resnet": (
        "ibot_small",
        lambda: ElasticResNet(
            ElasticSpace((8, 12, 16), ((1, 1, 1, 1), (1, 1, 2, 1), (1, 2, 1, 1), (1, 2, 2, 1))),
            image_size=64,
            norm_groups=4,
        ),
        lambda state: resnet_names.from_published(state, (1, 2, 2, 1)),
    ),
}
RECIPES = {
    "swin": {
        "name": "swin",
        "width": {"min": 96, "max": 128, "step": 16},
        "stages": [[2, 2], [2, 2], [6, 18], [2, 2]],
        "patch_size": 4,
        "head_dim": 16,
        "small_bias": 2.0,
        "names": {"tiny": "96x6", "small": "96x18", "base": "128x18"},
    },
    "resnet": {
        "name": "resnet",
        "width": {"min": 64, "max": 128, "step": 32},
        "stages": [[3, 3], [4, 8], [6, 36], [3, 3]],
        "patch_size": 4,
        "small_bias": 2.0,
        "names": {"R50": "64x3-4-6-3", "R101": "64x3-4-23-3", "R152": "64x3-8-36-3"},
    },
}


@functools.cache
def arrays(name: str) -> dict[str, torch.Tensor]:
    with np.load(shared(f"golden/05_step/{name}.npz")) as z:
        return {
            key: torch.from_numpy(z[key].astype("float32") if z[key].dtype == "float16" else z[key])
            for key in z.files
        }


def published(file: str) -> dict:
    return json.loads(shared(f"golden/{file}/case.json").read_text())


def recipe_of(kind: str, **changes: object) -> Recipe:
    return load.from_dict({"backbone": RECIPES[kind] | changes, "evaluation": {"sizes": ["all"]}})


def subnet_of(width: int | list[int], depth: int | list[int]) -> Subnet:
    """The published notation: stage widths and depths as lists for ResNet."""
    if isinstance(width, list):
        assert width == [width[0] * 2**i for i in range(4)]
        return Subnet(width[0], tuple(depth))
    return Subnet(width, depth)


def branch(kind: str, part: str) -> Branch:
    _, build, names = STEPS[kind]
    state, backbone = arrays(f"{kind}_{part}"), build()
    heads = HeadBank(
        backbone.feature_width(backbone.space.intact), (16, 24, 32, 48), hidden=64, bottleneck=16
    )
    backbone.load_state_dict(names(state))
    heads.load_state_dict(heads_from_published(state))
    return Branch(backbone, heads, None).double()


@pytest.mark.parametrize("kind", STEPS)
def test_total_and_gradients_of_a_step_are_the_published_ones(kind: str) -> None:
    run, _, names = STEPS[kind]
    wanted, stored = published("05_step")[kind]["runs"][run], arrays("batch")
    batch = Batch.of(
        stored["collated_global_crops"].double(),
        stored["collated_local_crops"].double(),
        stored["collated_masks"],
    )
    student, teacher = branch(kind, "student"), branch(kind, "teacher")
    intact = student.backbone.space.intact
    slots = [targets.teach(teacher, batch, intact, ibot=True)]
    terms = slot_terms(
        student,
        batch,
        targets.balance(slots, 0.05, iterations=3)[0],
        (intact, subnet_of(*wanted["network"])),
        ibot=True,
        temperature=0.1,
    )
    total = terms.total((0.8, 0.2), Objective())
    total.backward()
    assert abs(total.item() / wanted["total_loss"] - 1) < 1e-6
    full, checked = arrays(f"{kind}_{run}_grads"), 0
    for name, norm in wanted["grad_norm"].items():
        probe = {name: torch.zeros(24)}
        ours = [f"backbone.{n}" for n in names(probe)] if name.startswith("backbone.") else []
        ours += [f"heads.{n}" for n in heads_from_published(probe)]
        if not ours:
            assert norm is None, name  # norms that pre-training does not use
            continue
        got = student.get_parameter(ours[0]).grad
        assert (got is None) if norm is None else abs(got.norm().item() / norm - 1) < 1e-5, name
        if name in full:
            got = third_major(got, 8) if ".qkv." in name else got
            if ".downsample." in name and isinstance(student.backbone, ElasticSwin):
                got = position_major(got)
            assert (got - full[name]).norm() / full[name].norm() < 2e-5, name
        checked += norm is not None
    assert checked > 60


@pytest.mark.parametrize(("kind", "distinct", "entries"), [("swin", 39, 89), ("resnet", 465, 699)])
def test_sizes_menus_blocks_and_draws_are_the_published_ones(
    kind: str, distinct: int, entries: int
) -> None:
    wanted, recipe = published("07_networks")["recipes"][kind], recipe_of(kind)
    space = derived.space(recipe)
    times: dict[Subnet, int] = {}
    for subnet in space.menu():
        times[subnet] = times.get(subnet, 0) + 1
    listed = [(subnet_of(w, d), n) for w, d, n in wanted["networks_in_order"]]
    assert [subnet for subnet, _ in listed] == space.subnets() and len(listed) == distinct
    assert listed.pop()[0] == space.intact
    assert times == dict(listed) and len(space.menu()) == entries - 1
    order = [subnet for subnet, n in listed for _ in range(n)]
    for rank, sequence in wanted["network_id_sequence_per_rank"].items():
        laps = (0, sequence["first20"]), (len(order), sequence["first5_of_second_pass"])
        for first, ids in laps:
            drawn = [
                space.draw(first + i, int(rank), seed=0, slots=32, policy="per_slot")
                for i in range(len(ids))
            ]
            assert drawn == [order[i] for i in ids]
    for name, found in wanted["get_by_type"].items():
        if name in space.names:
            width = found.get("patch_width", found["width"] if kind == "resnet" else None)
            depth = found.get("s3_depth", found.get("depths"))
            assert space.parse(name) == subnet_of(width, depth)
            assert derived.shape(recipe).features(space.parse(name)) == found["feat_dim"]


def test_blocks_of_every_depth_are_the_published_ones() -> None:
    recipes_of = published("07_networks")["recipes"]
    swin, resnet = (derived.shape(recipe_of(kind)) for kind in ("swin", "resnet"))
    for depth, kept in recipes_of["swin"]["block_idx_stage3"].items():
        got = swin.members(Subnet(96, int(depth)))
        assert got == [0, 1, 2, 3, *[4 + block for block in kept], 22, 23]
    for d2, kept2 in recipes_of["resnet"]["block_idx_stage2"].items():
        for d3, kept3 in recipes_of["resnet"]["block_idx_stage3"].items():
            got = resnet.members(Subnet(64, (3, int(d2), int(d3), 3)))
            wanted = [0, 1, 2, *[3 + b for b in kept2], *[11 + b for b in kept3], 47, 48, 49]
            assert got == wanted


@pytest.mark.parametrize(("kind", "depth", "decay"), [("swin", 24, 0.9), ("resnet", 49, 0.95)])
def test_factors_and_decay_are_the_published_parameter_groups(
    kind: str, depth: int, decay: float
) -> None:
    groups = published("06_schedules_groups")["recipes"][kind]["param_groups"]
    checked, head_dim = 0, 16
    for name, (lr, decayed, is_last_layer, *_) in groups.items():
        probe = {name: torch.zeros(3 * head_dim)}
        if not name.startswith("backbone."):
            ours = ["heads." + n for n in heads_from_published(probe)]
        elif kind == "swin":
            ours = ["backbone." + n for n in swin_names.from_published(probe, (2, 2, 18, 2), 16)]
        else:
            ours = ["backbone." + n for n in resnet_names.from_published(probe, (3, 8, 36, 3))]
        if not ours:
            continue
        factor = optim.lr_factor(ours[0], depth=depth, layer_decay=decay, patch_embed_factor=0.2)
        assert factor == pytest.approx(lr, rel=1e-9), name
        assert optim.decays(ours[0]) == bool(decayed), name
        assert (optim.part(ours[0]) == "last_layer") == is_last_layer, name
        checked += 1
    assert checked > 350


@pytest.mark.parametrize("kind", RECIPES)
def test_the_published_sizes_have_the_published_number_of_parameters(kind: str) -> None:
    from poa_ds.recipe.backbone import backbone

    recipe = recipe_of(kind)
    with torch.device("meta"):
        model = backbone(recipe)
    assert isinstance(model, ElasticBackbone)
    wanted = published("06_schedules_groups")["recipes"][kind]
    unused = 2 * (128 + 256 + 512) if kind == "swin" else 0  # norms of the first three stages
    assert sum(p.numel() for p in model.parameters()) == wanted["n_params_backbone"] - unused
    assert model.feature_width(model.space.intact) == wanted["max_embed_dim"]
    assert model.decay_depth == {"swin": 24, "resnet": 49}[kind]


SHALLOW = {
    "vit": ({"depth": {"min": 1, "max": 1, "step": 1}}, lambda probe: from_published(probe)),
    "swin": (
        {**RECIPES["swin"], "stages": [[1, 1]] * 4, "names": {}},
        lambda probe: swin_names.from_published(probe, (1, 1, 1, 1), 16),
    ),
    "resnet": (
        {**RECIPES["resnet"], "stages": [[1, 1]] * 4, "names": {}},
        lambda probe: resnet_names.from_published(probe, (1, 1, 1, 1)),
    ),
}


@pytest.mark.parametrize("kind", SHALLOW)
def test_weights_start_as_the_published_ones_do(kind: str) -> None:
    """Of the first block of every stage: mean, spread and range of each tensor."""
    from poa_ds.recipe.backbone import backbone

    changes, names = SHALLOW[kind]
    torch.manual_seed(0)
    state = backbone(
        load.from_dict({"backbone": changes, "evaluation": {"sizes": ["all"]}})
    ).state_dict()
    wanted, compared = published("06_schedules_groups")["recipes"][kind], set()
    for name, numbers in wanted["init_stats_mean_std_min_max"].items():
        for ours in names({name: torch.zeros(192)}).keys() & state.keys():
            mean, std, low, high = numbers
            got, few = state[ours].double(), state[ours].numel() ** -0.5  # sampling error
            assert abs(got.mean().item() - mean) <= 8 * few * std + 1e-9, name
            assert abs(got.std(correction=0).item() - std) <= 4 * few * std + 1e-9, name
            wide = got.abs().max().item(), max(-low, high)
            assert wide[0] == pytest.approx(wide[1], rel=0.25), name
            compared.add(ours)
    assert len(compared) >= 16, compared


@pytest.mark.parametrize("kind", RECIPES)
def test_balanced_draws_go_by_counted_work_and_use_every_entry_once(kind: str) -> None:
    recipe = recipe_of(kind)
    space, shape = derived.space(recipe), derived.shape(recipe)
    assert space.cost(space.intact) == 1
    relative = shape.flops(space.smallest, 224) / shape.flops(space.intact, 224)
    assert space.cost(space.smallest) == pytest.approx(relative)
    n, slots = len(space.menu()), 4
    drawn = [
        [space.draw(step, slot, seed=1, slots=slots, policy="balanced") for slot in range(slots)]
        for step in range(n)  # as many laps as slots
    ]
    assert sorted(s for step in drawn for s in step) == sorted(space.menu() * slots)
    spans = [max(map(space.cost, step)) - min(map(space.cost, step)) for step in drawn]
    assert np.median(spans) < 0.1

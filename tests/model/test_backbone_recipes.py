"""Swin and ResNet in recipes: names of sizes, mistakes, the published ImageNet recipes, lists."""

from pathlib import Path

import pytest
import torch

from poa_ds.data.spec import batch_spec
from poa_ds.evaluate import sizes
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.backbone import backbone
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import parse
from poa_ds.track import plots
from tests.model.test_backbones import RECIPES, published, recipe_of

FOLDER = Path(__file__).parents[2] / "ds_configs"


def test_names_and_labels_of_sizes_with_stages() -> None:
    subnet = Subnet(96, (3, 5, 20, 3))
    assert str(subnet) == "96x3-5-20-3" and subnet.label == "w0096_d03-05-20-03"
    assert Subnet.read(str(subnet)) == Subnet.read(subnet.label) == subnet
    assert Subnet.read("384x12") == Subnet(384, 12) and Subnet.read("384") is None
    space = derived.space(recipe_of("resnet"))
    assert space.select("R50,96x3-5-20-3") == [Subnet(64, (3, 4, 6, 3)), subnet]
    for text in ("96x20", "96x3-9-20-3", "80x3-5-20-3"):
        with pytest.raises(UsageError, match=r"depth in \[3..3\]-\[4..8\]-\[6..36\]-\[3..3\]"):
            space.parse(text)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("swin", {"width": {"min": 96, "max": 128, "step": 8}}, "104 is not a multiple of"),
        ("swin", {"stages": [[2, 2], [2, 3], [6, 18], [2, 2]]}, r"stages\[1\] is \[2, 3\]: swin"),
        ("swin", {"stages": [[2, 2], [2, 2], [6, 18]]}, "has 3 stages"),
        ("swin", {"patch_size": 16}, "crops.global_size 224 is not a multiple of 8 x"),
        ("swin", {"depth": {"min": 6, "max": 18, "step": 1}}, "depth is vit's"),
        ("swin", {"residual": "precision"}, "residual is of vit and tucker"),
        ("resnet", {"residual": "precision"}, "residual is of vit and tucker"),
        ("resnet", {"width": {"min": 64, "max": 128, "step": 16}}, "norm_groups 32"),
        ("resnet", {"patch_size": 16}, "stem reduces by 4"),
        ("resnet", {"stages": [[3, 3], [8, 4], [6, 36], [3, 3]]}, "must not exceed"),
        ("resnet", {"name": "vit", "names": {}}, "stages belongs to swin and resnet"),
    ],
)
def test_a_mistake_in_the_sizes_is_named(kind: str, changes: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recipe_of(kind, **changes)


@pytest.mark.parametrize("kind", RECIPES)
def test_a_recipe_survives_its_own_yaml_and_masks_have_a_cell_per_16_px(kind: str) -> None:
    recipe = recipe_of(kind)
    assert load.from_dict(parse(load.to_yaml(recipe), source="")) == recipe
    assert batch_spec(recipe).masks.grid == 14


@pytest.mark.parametrize(
    ("name", "kind"), [("swin_b_in1k", "swin"), ("resnet152x2_in1k", "resnet")]
)
def test_the_imagenet_recipes_are_the_published_ones(name: str, kind: str) -> None:
    recipe = load.recipe(FOLDER / f"{name}.yaml")
    theirs = published("06_schedules_groups")["recipes"][kind]
    keys, numbers = theirs["config"], derived.of(recipe, 1_281_167)
    assert recipe.batch.images_per_slot == keys["train"]["batch_size_per_gpu"]
    assert recipe.batch.slots == 32 and list(recipe.masks.ratio) == [0.1, 0.3]
    assert numbers.lr == pytest.approx(keys["optim"]["lr"], rel=1e-12)
    assert numbers.steps == theirs["total_iters"]
    assert numbers.ibot_start_step == theirs["ibot_activate_iter"]
    assert recipe.optimizer.layer_decay == keys["optim"]["layerwise_decay"]
    assert recipe.backbone.drop_path == keys["student"].get("drop_path_rate", 0.2)
    assert derived.space(recipe).subnets() == derived.space(recipe_of(kind)).subnets()
    schedules = derived.schedules(recipe, 1_281_167)
    for i, step in enumerate(theirs["iterations"]):
        values = schedules.at(step)
        assert values.lr == pytest.approx(theirs["values"]["lr"][i], rel=1e-12, abs=0)
        assert values.momentum == pytest.approx(theirs["values"]["momentum"][i], rel=1e-12)


@pytest.mark.parametrize("kind", RECIPES)
def test_the_sizes_of_a_run_are_listed_within_a_budget(kind: str) -> None:
    recipe = recipe_of(kind)
    with torch.device("meta"):
        model = backbone(recipe)
    rows = sizes.rows(model, recipe, {}, most_parameters=30e6)
    assert 0 < len(rows) < len(model.space.subnets())
    lines = sizes.table(rows, recipe, "title").splitlines()
    assert len({len(line) for line in lines[1:]}) == 1  # columns stay apart
    name = {"swin": "tiny", "resnet": "R50"}[kind]
    (row,) = [row for row in rows if row.name == name]
    # source: timm's Swin-T has 27.5 M without its head, of which ours shares all but the patches
    assert abs(row.parameters / {"swin": 27.5e6, "resnet": 23.5e6}[kind] - 1) < 0.01


@pytest.mark.parametrize("kind", RECIPES)
def test_pictures_of_many_sizes_are_drawn(kind: str) -> None:
    values = {s: 50.0 + i % 7 for i, s in enumerate(derived.space(recipe_of(kind)).subnets())}
    figure = plots.heat_map(values, title="k-NN")
    assert max(figure.get_size_inches()) < 40
    rows = [
        {"step": step, f"knn_top1/{s.label}": value + step}
        for step in (0, 5)
        for s, value in values.items()
    ]
    plots.curves(rows, title="k-NN")

"""Recipes: what is accepted, what is refused in which words, and what follows from them."""

import json
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
import yaml

from poa_ds.model.options import Range
from poa_ds.model.space import Subnet
from poa_ds.recipe import checks, derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import leaves
from tests.conftest import shared

FOLDER = Path(__file__).parents[2] / "ds_configs"
RECIPES = sorted(path.name for path in FOLDER.glob("*.yaml"))
IMAGENET_IMAGES = 1_281_167


def refused(tree: dict) -> str:
    with pytest.raises(UsageError) as error:
        load.from_dict(tree)
    return str(error.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_loads_and_its_printed_form_is_the_same_recipe(
    name: str, tmp_path: Path
) -> None:
    recipe = load.recipe(FOLDER / name)
    again = load.recipe(written(tmp_path, load.to_yaml(recipe)))
    assert again == recipe
    checks.check_places(replace(recipe, output_dir="runs/x"))
    assert "learning rate" in derived.describe(recipe, IMAGENET_IMAGES)


def test_the_defaults_are_the_published_numbers() -> None:
    published = json.loads((shared("golden/06_schedules_groups") / "case.json").read_text())
    theirs = published["recipes"]["vit"]["config"]
    ours = load.recipe(FOLDER / "vit_l16_in1k_published.yaml")
    pairs = {
        "min_embed_dim": ours.backbone.width.min,
        "max_embed_dim": ours.backbone.width.max,
        "min_depth": ours.backbone.depth.min,
        "max_depth": ours.backbone.depth.max,
        "head_dim": ours.backbone.head_dim,
        "patch_size": ours.backbone.patch_size,
        "drop_path_rate": ours.backbone.drop_path,
        "layerscale": ours.backbone.layer_scale,
        "net_select_scale": ours.backbone.small_bias,
        "head_n_prototypes": [*ours.heads.prototypes],
        "head_bottleneck_dim": ours.heads.bottleneck,
        "head_nlayers": ours.heads.layers,
        "head_hidden_dim": ours.heads.hidden,
        "koleo_loss_weight": ours.objective.koleo,
        "lambda_ie": ours.objective.intact_weight,
        "mask_sample_probability": ours.masks.probability,
        "mask_ratio_min_max": [*ours.masks.ratio],
        "batch_size_per_gpu": ours.batch.images_per_slot,
        "weight_decay": ours.schedule.weight_decay,
        "weight_decay_end": ours.schedule.weight_decay_end,
        "base_lr": ours.schedule.base_lr,
        "lr": derived.of(ours, IMAGENET_IMAGES).lr,
        "warmup_epochs": ours.schedule.warmup_epochs,
        "min_lr": ours.schedule.min_lr,
        "clip_grad": ours.optimizer.clip_backbone,
        "freeze_last_layer_epochs": ours.schedule.freeze_last_layer_epochs,
        "patch_embed_lr_mult": ours.optimizer.patch_embed_factor,
        "layerwise_decay": ours.optimizer.layer_decay,
        "adamw_beta1": ours.optimizer.beta1,
        "adamw_beta2": ours.optimizer.beta2,
        "iter_num_scale": ours.schedule.stretch,
        "ibot_activate_epochs": ours.schedule.ibot_start_epoch,
        "epochs": ours.schedule.epochs,
        "momentum_teacher": ours.schedule.momentum,
        "final_momentum_teacher": ours.schedule.momentum_end,
        "warmup_teacher_temp": ours.schedule.teacher_temperature_start,
        "teacher_temp": ours.schedule.teacher_temperature,
        "warmup_teacher_temp_epochs": ours.schedule.teacher_temperature_epochs,
        "global_crops_scale": [*ours.crops.global_scale],
        "local_crops_number": ours.crops.local_count,
        "local_crops_scale": [*ours.crops.local_scale],
        "global_crops_size": ours.crops.global_size,
        "local_crops_size": ours.crops.local_size,
        "eval_period_iterations": derived.of(ours, IMAGENET_IMAGES).evaluation_steps,
    }
    flat = {key: value for section in theirs.values() for key, value in section.items()}
    assert pairs == {key: flat[key] for key in pairs}


@pytest.mark.parametrize(("slots", "images"), [(32, 50), (16, 100)])
def test_schedules_of_the_recipe_reach_the_published_values(slots: int, images: int) -> None:
    golden = json.loads((shared("golden/06_schedules_groups") / "case.json").read_text())
    expected = golden["recipes"]["vit"]
    recipe = load.recipe(
        FOLDER / "vit_l16_in1k.yaml", [f"batch.slots={slots}", f"batch.images_per_slot={images}"]
    )
    schedules = derived.schedules(recipe, IMAGENET_IMAGES)
    assert schedules.total_steps == expected["total_iters"]
    ours = [schedules.at(step).lr for step in expected["iterations"]]
    assert ours == pytest.approx(expected["values"]["lr"], rel=1e-12)


@pytest.mark.parametrize(
    ("assignment", "path", "expected"),
    [
        ("schedule.base_lr=5e-4", ("schedule", "base_lr"), 5e-4),
        ("schedule.base_lr=1", ("schedule", "base_lr"), 1.0),
        ("crops.global_scale=[0.2,1]", ("crops", "global_scale"), (0.2, 1.0)),
        ("heads.prototypes=[8, 16]", ("heads", "prototypes"), (8, 16)),
        ("evaluation.sizes=384x12,1024x24", ("evaluation", "sizes"), ("384x12", "1024x24")),
        ("evaluation.sizes=[384x12]", ("evaluation", "sizes"), ("384x12",)),
        ("mlflow.run_name=2024", ("mlflow", "run_name"), "2024"),
        ("mlflow.run_name='a: b'", ("mlflow", "run_name"), "a: b"),
        ("output_dir=/d/with space", ("output_dir",), "/d/with space"),
        ("output_dir=a=b", ("output_dir",), "a=b"),
        ("backbone.names.half=512x12", ("backbone", "names"), {"half": "512x12"}),
        ("backbone.width.min=512", ("backbone", "width"), Range(512, 1024, 64)),
        ("backbone.depth={min: 14}", ("backbone", "depth"), Range(14, 24, 1)),
        ("evaluation.at_start=false", ("evaluation", "at_start"), False),
        ("data.train=", ("data", "train"), ""),
    ],
)
def test_an_override_sets_one_key(
    assignment: str, path: tuple[str, ...], expected: object, tmp_path: Path
) -> None:
    found: object = load.recipe(written(tmp_path, ""), [assignment])
    for name in path:
        found = getattr(found, name)
    assert found == expected and type(found) is type(expected)


def test_later_overrides_win_and_the_file_keeps_the_rest(tmp_path: Path) -> None:
    path = written(tmp_path, "batch: {slots: 4, images_per_slot: 2}\n")
    recipe = load.recipe(path, ["batch.slots=8", "batch.slots=16"])
    assert (recipe.batch.slots, recipe.batch.images_per_slot) == (16, 2)


@pytest.mark.parametrize("number", ["5e-4", "5E-4", ".0005", "0.0005", "5.e-4"])
def test_every_way_to_write_a_float_is_a_number(number: str, tmp_path: Path) -> None:
    recipe = load.recipe(written(tmp_path, f"schedule:\n  base_lr: {number}\n"))
    assert recipe.schedule.base_lr == 5e-4


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"bacth": {}}, ["bacth", "batch"]),
        ({"batch": {"slot": 3}}, ["batch.slot", "batch.slots"]),
        ({"lr": 1}, ["unknown key lr", "schedule.base_lr"]),
        ({"batch": 3}, ["batch", "3", "slots, images_per_slot"]),
        ({"batch": {"slots": 1.5}}, ["batch.slots", "1.5", "whole number"]),
        ({"batch": {"slots": True}}, ["batch.slots", "True", "whole number"]),
        ({"batch": {"slots": 0}}, ["batch.slots", "0", "at least 1"]),
        ({"schedule": {"epochs": "ten"}}, ["schedule.epochs", "'ten'", "a number"]),
        ({"schedule": {"stretch": 2}}, ["schedule.stretch", "2", "at most 1"]),
        ({"schedule": {"base_lr": float("nan")}}, ["schedule.base_lr", "a number"]),
        ({"precision": "fp8"}, ["precision", "fp8", "bf16, fp16, fp32"]),
        ({"backbone": {"name": "mixer"}}, ["backbone.name", "mixer", "vit"]),
        ({"evaluation": {"at_start": "yes"}}, ["evaluation.at_start", "true or false"]),
        ({"heads": {"prototypes": []}}, ["heads.prototypes", "not empty"]),
        ({"heads": {"prototypes": [8, "a"]}}, ["heads.prototypes[1]", "'a'"]),
        ({"crops": {"global_scale": [0.1]}}, ["crops.global_scale", "2 values"]),
        ({"backbone": {"names": {"a": 3}}}, ["backbone.names.a", "3", "text"]),
        ({"backbone": {"names": {"a": "1x2"}}}, ["backbone.names.a", "1x2", "384"]),
        ({"backbone": {"names": {"all": "384x12"}}}, ["backbone.names.all"]),
        ({"backbone": {"names": {"a\x1b[2J": "384x12"}}}, ["names.a\\x1b[2J", "print"]),
        ({"backbone": {"width": {"step": 96}}}, ["backbone.width.step 96", "960 or 1056"]),
        ({"backbone": {"width": {"min": 400, "step": 48}}}, ["width 400", "head_dim 64"]),
        ({"backbone": {"depth": {"max": 3}}}, ["depth.max 3", "depth.min 12"]),
        ({"crops": {"local_size": 100}}, ["crops.local_size 100", "patch_size 16", "96 or 112"]),
        ({"evaluation": {"crop": 225, "resize": 300}}, ["evaluation.crop 225", "patch_size 16"]),
        ({"crops": {"local_scale": [0.5, 0.1]}}, ["crops.local_scale", "exceed"]),
        ({"masks": {"ratio": [0.5, 0.1]}}, ["masks.ratio"]),
        ({"augmentation": {"blur_kernel": 4}}, ["augmentation.blur_kernel 4", "odd"]),
        ({"schedule": {"epochs": 5}}, ["warmup_epochs 10", "epochs 5"]),
        ({"checkpoint": {"keep_every_epochs": 2.5}}, ["keep_every_epochs 2.5", "2 would be"]),
        ({"evaluation": {"sizes": ["tiny"]}}, ["evaluation.sizes", "tiny", "384"]),
        ({"evaluation": {"report_k": 5}}, ["evaluation.report_k 5", "[10, 20, 100, 200]"]),
        ({"evaluation": {"resize": 200}}, ["evaluation.resize 200", "crop 224"]),
        ({"evaluation": {"bank_images": 100}}, ["evaluation.bank_images 100", "200"]),
        ({"batch": {"images_per_slot": 1}}, ["batch.images_per_slot 1", "koleo"]),
    ],
)
def test_a_mistake_is_named_with_its_value_and_what_is_allowed(
    tree: dict, words: list[str]
) -> None:
    message = refused(tree)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("key", ["width", "depth"])
def test_more_sizes_than_anybody_can_list_are_refused_at_once(key: str) -> None:
    endless = {key: {"min": 64, "max": 64 + 64 * 10**9, "step": 64}, "names": {}}
    assert f"backbone.{key} has 1,000,000,001 values" in refused({"backbone": endless})


def test_all_contradictions_are_said_at_once() -> None:
    message = refused({"crops": {"local_size": 100}, "masks": {"ratio": [0.5, 0.1]}})
    assert len(message.splitlines()) == 2


def test_every_key_refuses_a_value_of_another_kind() -> None:
    wrong = object()
    for leaf in leaves(Recipe):
        tree: object = wrong
        for part in reversed(leaf.split(".")):
            tree = {part: tree}
        assert leaf in refused(tree)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch: [", "is not valid YAML"),
        ("batch: {slots: 1}\nbatch: {slots: 2}\n", "'batch' is there twice"),
        ("- 1\n", "expected `key: value` lines"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe\.yaml") as error:
        load.recipe(written(tmp_path, text))
    assert words in str(error.value)


def test_a_missing_file_and_a_bare_word_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        load.recipe(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="not of the form key=value"):
        load.recipe(written(tmp_path, ""), ["batch.slots"])
    with pytest.raises(UsageError, match=r"batch\.slots"):
        load.recipe(written(tmp_path, ""), ["batch.slotz=3"])


def test_the_places_of_data_and_results_must_be_given() -> None:
    with pytest.raises(UsageError) as error:
        checks.check_places(Recipe())
    assert "output_dir" in str(error.value) and "data.train" in str(error.value)


def test_the_space_of_a_recipe_has_its_sizes_and_names() -> None:
    sizes = derived.space(load.recipe(FOLDER / "vit_l16_in1k.yaml"))
    assert (len(sizes.subnets()), len(sizes.menu())) == (143, 572)  # 573 with the intact one
    assert sizes.parse("base") == Subnet(768, 12)


def test_lengths_in_epochs_become_steps_and_tiny_sets_still_train() -> None:
    recipe = load.from_dict(
        {
            "batch": {"slots": 2, "images_per_slot": 8},
            "schedule": {"epochs": 2.5, "warmup_epochs": 0.5, "lr_scaling": "linear"},
            "evaluation": {"every_epochs": 0.1},
        }
    )
    numbers = derived.of(recipe, 165)  # 10 steps of 16 and a rest that joins the next epoch
    assert (numbers.steps_per_epoch, numbers.steps, numbers.warmup_steps) == (10, 25, 5)
    assert (numbers.evaluation_steps, numbers.checkpoint_steps) == (1, 10)
    assert numbers.lr == pytest.approx(0.004 * 16 / 1024)
    assert derived.of(recipe, 3).steps_per_epoch == 1
    root = replace(recipe, schedule=replace(recipe.schedule, lr_scaling="sqrt"))
    assert derived.of(root, 165).lr == pytest.approx(0.004 * sqrt(16 / 1024))


def test_milestones_fall_on_checkpoints_whatever_is_rounded() -> None:
    tree = {"schedule": {"steps_per_epoch": 5}, "checkpoint": {"every_epochs": 0.5}}
    numbers = derived.of(load.from_dict(tree), 0)
    assert (numbers.checkpoint_steps, numbers.keep_steps) == (2, 0)  # 2.5 is rounded
    tree["checkpoint"]["keep_every_epochs"] = 1.5
    recipe = load.from_dict(tree)
    assert derived.of(recipe, 0).keep_steps == 6
    assert "every 2 steps, the last 3 are kept, for good every 6" in derived.describe(recipe, 0)


def test_rank_counts_that_do_not_divide_the_slots_are_refused_with_those_that_do() -> None:
    recipe = load.from_dict({"batch": {"slots": 12}})
    checks.check_world(recipe, 4)
    with pytest.raises(UsageError, match=r"12 .* 5 ranks: start 1, 2, 3, 4, 6, 12 ranks"):
        checks.check_world(recipe, 5)


def test_fp16_is_refused_on_a_cpu_only() -> None:
    recipe = load.from_dict({"precision": "fp16"})
    checks.check_precision(recipe, "cuda")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        checks.check_precision(recipe, "cpu")


def test_plain_yaml_readers_understand_the_printed_recipe() -> None:
    tree = yaml.safe_load(load.to_yaml(Recipe()))
    assert tree["batch"] == {"slots": 32, "images_per_slot": 50}
    assert tree["optimizer"]["eps"] == 1e-8


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"base_lr": 1e-6}, ["schedule.base_lr 1e-06", "min_lr 2e-05", "rise"]),
        ({"base_lr": 3e-5, "lr_scaling": "linear"}, ["min_lr 2e-05", "linear", "16 images"]),
        ({"weight_decay": 0.5}, ["schedule.weight_decay_end 0.4", "weight_decay 0.5", "fall"]),
        ({"momentum_end": 0.9}, ["schedule.momentum_end 0.9 ", "momentum 0.992"]),
        (
            {"teacher_temperature": 0.02},
            ["schedule.teacher_temperature 0.02", "teacher_temperature_start 0.04"],
        ),
    ],
)
def test_a_schedule_that_runs_the_wrong_way_is_refused(schedule: dict, words: list[str]) -> None:
    small = {"batch": {"slots": 2, "images_per_slot": 8}}
    message = refused({"schedule": schedule, **small})
    assert len(message.splitlines()) == 1 and all(word in message for word in words), message


def test_a_schedule_may_be_constant_and_what_is_not_used_may_be_anything() -> None:
    flat = {"base_lr": 2e-5, "lr_scaling": "none", "weight_decay": 0.4, "momentum": 0.9999}
    load.from_dict({"schedule": flat | {"teacher_temperature_start": 0.07}})
    load.from_dict({"schedule": {"teacher_temperature": 0.02, "teacher_temperature_epochs": 0}})


@pytest.mark.parametrize(("method", "share"), [("dspnet", 0.5), ("poa", 0.0)])
def test_a_slow_start_is_read_where_it_stood_before(method: str, share: float) -> None:
    old = {"slimmable": {"weights": "poa", "slow_start": 0.5}, "objective": {"method": method}}
    found = load.kept(old)
    assert found.slimmable.weights == "poa" and found.objective.slow_start == share
    assert "slow_start" in old["slimmable"]
    with pytest.raises(UsageError, match=r"slimmable.slow_start"):
        load.from_dict(old)  # of a new run it is told


def test_the_recipe_of_a_run_that_is_there_is_read_whichever_way_it_went(tmp_path: Path) -> None:
    tree = {"schedule": {"base_lr": 1e-6, "momentum_end": 0.9}}
    recipe = load.kept(tree)
    assert load.kept_recipe(written(tmp_path, load.to_yaml(recipe))) == recipe
    with pytest.raises(UsageError, match=r"local_size 100"):
        load.kept({"crops": {"local_size": 100}})

"""Recipes to fine-tune by, images with labels, accuracies, and the command up to its training."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from poa_ds import cli
from poa_ds.data.loader import eval_batches, train_batches
from poa_ds.data.places import open_folder
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.selection import Selection
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.features import Readout
from poa_ds.evaluate.finetune import recipes, rows
from poa_ds.evaluate.finetune.accuracy import Counts, counted
from poa_ds.evaluate.finetune.images import Asked, learnt_from, measured_on
from poa_ds.evaluate.finetune.recipes import Job, Settings
from poa_ds.export import start
from poa_ds.model.classifier import Classified
from poa_ds.model.space import Subnet
from poa_ds.recipe import checks, load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError, UserError
from tests.support.shards import make_shards
from tests.support.teachers import RECIPE, make_run_with_heads, make_teacher

SETTINGS = Settings(batch=16, epochs=2, lr=0.01, layer_decay=0.5, drop_path=0.1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("places")
    make_shards(root / "train", 48)
    make_shards(root / "val", 21, first=60)
    make_teacher(root / "run")
    return root


def made(places: Path, **changed: object) -> Recipe:
    arguments = {
        "run": load.from_dict(RECIPE),
        "subnet": Subnet(32, 2),
        "start": "",
        "settings": SETTINGS,
        "train": str(places / "train"),
        "val": str(places / "val"),
        "classes": 3,
    }
    return Job(**arguments | changed).recipe("")


def test_other_sizes_take_the_row_of_the_nearest_named_one() -> None:
    vit = load.recipe(Path("vit_l16_in1k"))
    for size, title in {
        "384x12": "ViT-S",
        "384x24": "ViT-S",  # 43 M: twice 22 M, half of 86 M
        "512x16": "ViT-B",
        "768x12": "ViT-B",
        "1024x12": "ViT-B",
        "768x24": "ViT-L",  # 170 M: twice 86 M, and 304 M are 1.8 times as many
        "1024x24": "ViT-L",
    }.items():
        assert recipes.nearest(vit, Subnet.read(size)).title == title, size
    swin, resnet = load.recipe(Path("swin_b_in1k")), load.recipe(Path("resnet152x2_in1k"))
    assert recipes.nearest(swin, Subnet.read("96x6")).settings.lr == 0.0014
    assert recipes.nearest(resnet, Subnet.read("64x3-8-36-3")).title == "ResNet-152"


def test_recipes_of_transfer_are_of_vits_and_for_steps_of_768_images() -> None:
    vit, swin = load.recipe(Path("vit_l16_in1k")), load.recipe(Path("swin_b_in1k"))
    row = recipes.nearest(vit, Subnet.read("384x12"), "cars")
    assert row.title == "ViT-S on cars" and row.settings.lr == pytest.approx(6e-4)
    assert (row.settings.layer_decay, row.settings.erase, row.settings.epochs) == (0.8, 0.1, 1000)
    assert row.settings.warmup * row.settings.epochs == pytest.approx(5)
    large = recipes.nearest(vit, Subnet.read("1024x24"), "inat18")
    assert large.title == "ViT-B on inat18" and large.settings.drop_path == 0.2
    with pytest.raises(UsageError, match=r"backbone\.name swin: nothing is published"):
        recipes.nearest(swin, Subnet.read("96x6"), "cars")


def test_the_recipe_has_the_numbers_of_the_row(places: Path) -> None:
    found = made(places, start="RUN")
    schedule = found.schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.base_lr) == (2, 0.2, 0.01)
    assert (schedule.min_lr, schedule.momentum, schedule.stretch) == (1e-6, 0.7, 1.0)
    assert found.optimizer.layer_decay == 0.5 and found.optimizer.clip_backbone == 0
    assert found.backbone.drop_path == 0.1 and (found.batch.slots, found.batch.images_per_slot) == (
        8,
        2,
    )
    assert found.evaluation.crop == 32 and found.start == "RUN"
    assert made(places, cosine=200.0).schedule.stretch == 0.01
    with pytest.raises(UsageError, match="--slots 3 do not divide the 16 images"):
        made(places, slots=3)


def test_classes_and_labels_that_are_wrong_are_told(places: Path, tmp_path: Path) -> None:
    folder = ShardFolder.open(places / "train")
    with pytest.raises(UsageError, match=r"finetune.classes 4: .* has 3"):
        learnt_from(folder, made(places, classes=4))
    with pytest.raises(UsageError, match="hold the same images"):
        measured_on(folder, folder)


def test_a_file_names_what_is_learnt_from_as_in_published_lists(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Names as SimCLR's, with an end and without folders; another file is another folder."""
    folder, chosen = ShardFolder.open(places / "train"), [40, 3, 17, 1]
    names = [folder.name(number).rpartition("/")[2] for number in chosen]
    file = tmp_path / "1percent.txt"
    file.write_text("".join(f"{name}.JPEG\n" for name in names))
    recipe = made(places, subset=file)
    found = learnt_from(folder, recipe)
    assert found.numbers.tolist() == sorted(chosen) and recipes.amount(recipe) == "_of_1percent"
    assert recipes.protocol(recipe)["subset"]["file"] == "1percent.txt"
    asked = words(places, "--sizes", "32x2", "--batch", "16", "--dry-run", "--subset", str(file))
    assert cli.main(asked) == 0
    first = capsys.readouterr().out
    file.write_text("".join(f"{name}.JPEG\n" for name in names[:-1]))
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[-1] != first.splitlines()[-1]
    file.write_text("elsewhere.JPEG\n")
    with pytest.raises(UserError, match=r"names 1 images that .* lacks: elsewhere"):
        learnt_from(folder, recipe)
    with pytest.raises(UsageError, match=r"finetune.share 0.5 and finetune.subset"):
        checks.check(replace(recipe, finetune=replace(recipe.finetune, share=0.5)))


def test_few_labels_of_imagenet_have_a_row_of_vit_s() -> None:
    """5e-6 for 512 images, in steps of 1,024; the rate stays what it is behind the warm-up."""
    vit, swin = load.recipe(Path("vit_l16_in1k")), load.recipe(Path("swin_b_in1k"))
    row = recipes.nearest(vit, Subnet.read("1024x24"), "few").settings
    assert (row.batch, row.epochs, row.warmup * row.epochs) == (1024, 1000, 5)
    assert row.lr == row.min_lr == 5e-6 * 1024 / 512
    assert (row.layer_decay, row.ema, row.drop_path) == (1.0, 0.99996, 0.1)
    with pytest.raises(UsageError, match="nothing is published"):
        recipes.nearest(swin, Subnet.read("96x6"), "few")


def test_a_share_has_as_much_of_each_class_and_is_part_of_a_larger_one(places: Path) -> None:
    folder = ShardFolder.open(places / "train")
    small, large = (learnt_from(folder, made(places, subset=share)) for share in (0.25, 0.5))
    assert isinstance(small, Selection) and isinstance(large, Selection)
    assert np.bincount([small.label(i) for i in range(len(small))]).tolist() == [4, 4, 4]
    assert set(small.numbers) < set(large.numbers)
    assert small.hash != large.hash and learnt_from(folder, made(places)) is folder
    assert small.read(1) == folder.read(int(small.numbers[1]))
    other = learnt_from(folder, made(places, subset=0.25, seed=1))
    assert set(other.numbers) != set(small.numbers)


def test_batches_have_one_crop_and_the_label_of_each_image(places: Path) -> None:
    recipe = made(places, slots=2)
    folder = learnt_from(open_folder(recipe.data.train, recipe.data), recipe)
    batches = train_batches(recipe, folder)
    first, second = next(batches), next(batches)
    assert first.global_crops.shape == (8, 3, 32, 32) and first.size == 8
    assert first.global_crops.dtype == torch.float32 and len(first.local_crops) == 0
    alone = next(train_batches(recipe, folder, rank=1, world=2))
    assert torch.equal(alone.global_crops, second.global_crops)
    assert torch.equal(alone.labels, second.labels)


def test_accuracies_are_those_of_a_slow_loop(places: Path) -> None:
    recipe = made(places)
    folder = ShardFolder.open(places / "train")
    val = ShardFolder.open(places / "val")
    numbers = measured_on(val, folder).numbers
    torch.manual_seed(3)
    network = Classified(backbone(recipe), 3).eval()
    network.classifier.weight.data *= 40  # several classes are named
    own = torch.tensor([1, 2, 0])
    readout = Readout.of(recipe, "cpu")
    found = counted(network, Asked(val, numbers, own, {}), recipe.evaluation, readout)
    right, there, named = [0, 0, 0], [0, 0, 0], set()
    for images, labels in eval_batches(val, numbers, resize=32, crop=32, batch_size=1):
        mean, std = (
            torch.tensor(x).view(3, 1, 1)
            for x in (recipe.augmentation.mean, recipe.augmentation.std)
        )
        with torch.no_grad():
            guess = int(network((images / 255 - mean) / std).argmax())
        wanted = [1, 2, 0][int(labels)]
        named.add(guess)
        there[wanted] += 1
        right[wanted] += guess == wanted
    assert len(named) > 1
    assert found.right.tolist() == right and found.images.tolist() == there
    assert found.top1 == pytest.approx(100 * sum(right) / 21)
    rates = [r / n for r, n in zip(right, there, strict=True)]
    assert found.mean_per_class == pytest.approx(100 * sum(rates) / 3)


def test_classes_without_images_are_not_in_the_mean_per_class() -> None:
    found = Counts(torch.tensor([1, 0, 4]), torch.tensor([2, 0, 4]))
    assert found.mean_per_class == 75 and found.top1 == pytest.approx(500 / 6)


def test_the_run_gets_the_last_accuracy_and_the_best(places: Path) -> None:
    recipe, own = made(places), []
    for step, right in ((2, 5), (4, 9), (6, 7)):
        counts = Counts(torch.tensor([right, 0, 0]), torch.tensor([10, 5, 6]))
        own += rows.of_counts(step, "32x2", counts, recipe, 1.0)
    of_run = {"step": 3, "named": "top1", "setting": {}, "protocol": {}, "seconds": 2.0}
    last, best = rows.of_run(own, metric="top1", **of_run)
    assert (last.name, last.value) == ("finetune_top1", pytest.approx(700 / 21))
    assert (best.name, best.value) == ("finetune_top1_best_on_val", pytest.approx(900 / 21))
    assert last.error == pytest.approx(1.96 * (100 / 3 * 200 / 3 / 21) ** 0.5)
    assert (last.step, last.setting, best.setting) == (3, {"at step": 6}, {"at step": 4})


def words(places: Path, *more: str) -> list[str]:
    where = ["--train", str(places / "train"), "--val", str(places / "val")]
    return ["eval", "finetune", str(places / "run"), *where, *more]


def test_few_labels_take_the_head_where_the_run_has_one(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, _ = make_run_with_heads(tmp_path / "run")
    folders = []
    for where, more, status in (
        (run, ["--recipe", "few"], 0),
        (run, ["--recipe", "few", "--head-layer", "0"], 0),
        (run, ["--recipe", "few", "--head-layer", "1"], 0),
        (places / "run", ["--recipe", "few"], 0),
        (places / "run", ["--head-layer", "1"], 2),
    ):
        asked = words(places, "--sizes", "32x2", "--batch", "16", "--dry-run", *more)
        asked[2] = str(where)
        assert cli.main(asked) == status
        printed = capsys.readouterr()
        folders.append(printed.out.splitlines()[-1:])
        assert ("has no projection head" in printed.err) == (where != run)
    assert folders[0] == folders[2] != folders[1]
    with pytest.raises(UserError, match=r"finetune.projected 16: its head has 24"):
        start.check(backbone(made(places)), f"{run}:32x2", projected=16)


def test_heads_that_smaller_sizes_did_not_learn_with_are_not_taken(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, _ = make_run_with_heads(tmp_path / "run", heads={"elastic": "own"})
    for more, status in ((["--recipe", "few"], 0), (["--head-layer", "1"], 2)):
        asked = words(places, "--sizes", "32x2", "--batch", "16", "--dry-run", *more)
        asked[2] = str(run)
        assert cli.main(asked) == status
        assert "heads that were not kept (heads.elastic=own)" in capsys.readouterr().err


def test_a_dry_run_says_the_cost_and_writes_nothing(
    places: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = words(places, "--sizes", "32x2,48x3", "--batch", "16", "--epochs", "4", "--dry-run")
    assert cli.main(asked) == 0
    printed = capsys.readouterr().out
    assert "32x2, as ViT-S: 12 steps x 16 images = " in printed and "48x3, as ViT-S" in printed
    assert "lr 0.002" in printed and "layer decay 0.55" in printed
    assert not (places / "run" / "finetune").exists()
    assert score_rows.read(places / "run" / "evaluations.jsonl") == []


def test_another_number_is_another_folder_and_protocol(
    places: Path, capsys: pytest.CaptureFixture
) -> None:
    found = set()
    few = ["--subset", "50%"]
    for more in ([], ["--lr", "0.1"], ["--seed", "1"], ["--random-weights"], few):
        assert cli.main(words(places, "--sizes", "32x2", "--batch", "16", "--dry-run", *more)) == 0
        found.add(capsys.readouterr().out.splitlines()[-1])
    assert len(found) == 5


def test_wrong_use_is_said(places: Path, capsys: pytest.CaptureFixture) -> None:
    run = str(places / "run")
    assert cli.main(["eval", "finetune", run, "--sizes", "32x2"]) == 2
    assert "give --train SHARDS" in capsys.readouterr().err
    assert cli.main(words(places, "--sizes", "32x9")) == 2
    assert "32x9" in capsys.readouterr().err
    assert cli.main(words(places, "--sizes", "32x2", "--lr", "-1", "--dry-run")) == 2
    assert "schedule.base_lr" in capsys.readouterr().err
    assert cli.main(words(places, "--sizes", "32x2", "--policy", "rand9", "--dry-run")) == 2
    assert "--policy rand9: timm knows no such policy" in capsys.readouterr().err
    assert cli.main(words(places, "--sizes", "32x2", "--ema", "1", "--dry-run")) == 2
    assert "--ema 1: 0 to below 1" in capsys.readouterr().err
    nowhere = ("--deepspeed_config", "nowhere.json", "--dry-run")
    assert cli.main(words(places, "--sizes", "32x2", *nowhere)) == 2
    assert "nowhere.json" in capsys.readouterr().err


def test_rows_are_json_that_is_read_again(places: Path) -> None:
    counts = Counts(torch.tensor([5, 0, 0]), torch.tensor([10, 5, 6]))
    for row in rows.of_counts(2, "32x2", counts, made(places), 1.0):
        assert type(row).from_json(row.to_json()) == row
        assert json.loads(row.to_json())["kind"] == "finetune"

"""k-NN against the published numbers, a slow loop, and its own promises."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poa_ds import cli
from poa_ds.checkpoint.deployed import publish
from poa_ds.data.image.views import center_view
from poa_ds.data.loader import eval_batches
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import results, right
from poa_ds.evaluate.features import Readout, features, random_weights
from poa_ds.evaluate.knn import answers as answers_of
from poa_ds.evaluate.knn import knn, raw_pixel_floor
from poa_ds.evaluate.knn_protocol import KnnProtocol
from poa_ds.evaluate.neighbours import (
    Bank,
    Deal,
    answers,
    local_neighbours,
    read_keys,
    subset,
    vote,
)
from poa_ds.evaluate.results import KnnRow
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError, UserError
from tests.conftest import shared
from tests.data.test_loader import damage
from tests.support.shards import image, make_shards

RECIPE = Path(__file__).parents[2] / "ds_configs" / "photos.yaml"
CPU = torch.device("cpu")


def tiny(*overrides: str) -> Recipe:
    space = ("backbone.width.max=48", "backbone.depth.max=3", "backbone.names={small: 32x2}")
    options = ("evaluation.batch_size=7", "evaluation.k=[1, 5, 20]", "data.workers=0")
    return load.recipe(RECIPE, [*space, *options, *overrides])


def published() -> dict[str, torch.Tensor]:
    with np.load(shared("golden/09_mask_knn/knn.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.mark.parametrize("name", ["photos", "photos_swin", "photos_resnet"])
def test_autocast_gives_nearly_the_same_features(name: str) -> None:
    recipe = load.recipe(RECIPE.with_name(f"{name}.yaml"), [])
    model, images = backbone(recipe), torch.randn(4, 3, 32, 32)
    space = derived.space(recipe)
    for subnet in (space.smallest, space.intact):
        exact = features(model, images, subnet)
        # fp16: some virtual machines announce bf16 products that they do not have
        as_they_are = Readout((0.0,) * 3, (1 / 255,) * 3, CPU, "fp16")
        [low] = as_they_are.encoder(model, [subnet])(images)
        apart = (low.float() - exact).norm() / exact.norm()
        assert 1e-6 < apart < 1e-2, (subnet, apart)


def test_probabilities_and_accuracy_are_the_published_ones() -> None:
    z, case = published(), json.loads(shared("golden/09_mask_knn/case.json").read_text())["knn"]
    blocks = list(z["train"].split(50))
    bank = Bank(blocks, [range(i, min(i + 50, 320)) for i in range(0, 320, 50)])
    (keys,) = local_neighbours([z["test"]], bank, 200)
    similarity, numbers = read_keys(keys)
    scores = vote(similarity, z["train_labels"][numbers], 8, case["T"], case["ks"])
    for k in case["ks"]:
        assert (scores[k] - z[f"proba_k{k}"]).abs().max() < 1e-6, k
    found = answers(
        bank,
        list(z["test"].split(32)),
        Deal(96, 32),
        bank_labels=z["train_labels"],
        query_labels=z["test_labels"],
        classes=8,
        temperature=case["T"],
        k=case["ks"],
        device=CPU,
    ).percent()
    for k in case["ks"]:
        # stored as float32
        assert found[k] == pytest.approx(100 * case["results"][str(k)]["top-1"], abs=1e-5), k


def test_subsets_are_evenly_spread() -> None:
    assert subset(10, 4).tolist() == [0, 2, 5, 7]
    assert subset(10, 0).tolist() == subset(10, 99).tolist() == list(range(10))


def slow_answers(model, subnet, bank, queries, recipe) -> dict[int, list[bool]]:
    """Whether each query is right: one image at a time, a Python loop over queries."""
    options = recipe.augmentation
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (options.mean, options.std))

    def feature(number: int) -> torch.Tensor:
        pixels = torch.from_numpy(image(number)).permute(2, 0, 1)
        x = (center_view(pixels, 32, 32) / 255 - mean) / std
        with torch.no_grad():
            return F.normalize(model(x[None], subnet)[0, 0], dim=0)

    def samples(folder) -> list:
        numbers = [int(folder.key(i).removeprefix("image_")) for i in range(len(folder))]
        return [(feature(n), n % 3) for n in numbers]

    known, right = samples(bank), {k: [] for k in recipe.evaluation.k}
    for x, truth in samples(queries):
        near = sorted(((float(x @ y), label) for y, label in known), reverse=True)[:20]
        weights = [math.exp(s / 0.07) for s, _ in near]
        for k in right:
            score = [0.0, 0.0, 0.0]
            for w, (_, label) in list(zip(weights, near, strict=True))[:k]:
                score[label] += w
            right[k].append(score.index(max(score)) == truth)
    return right


def test_accuracy_of_every_size_equals_that_of_a_slow_loop(tmp_path: Path) -> None:
    recipe = tiny()
    bank, queries = make_shards(tmp_path / "bank", 40), make_shards(tmp_path / "queries", 25)
    model = random_weights(recipe)
    subnets = model.space.select("32x2,48x3")
    protocol = KnnProtocol.of(bank, queries, recipe.evaluation)
    found = knn(model, subnets, protocol, Readout.of(recipe, CPU))
    assert list(found) == subnets and model.training
    every = answers_of(model, subnets, protocol, Readout.of(recipe, CPU))
    for subnet in subnets:
        by_k = slow_answers(model, subnet, bank, queries, recipe)
        assert found[subnet] == {k: 100 * sum(r) / len(r) for k, r in by_k.items()}
        assert {k: r.tolist() for k, r in every[subnet].right.items()} == by_k


def test_sizes_that_do_not_fit_into_memory_take_another_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny()
    bank, queries = make_shards(tmp_path / "bank", 30), make_shards(tmp_path / "queries", 12)
    model, passes = random_weights(recipe), []

    def progress(items, **words):
        passes.append(words["label"])
        return items

    protocol = KnnProtocol.of(bank, queries, recipe.evaluation)
    arguments = (model, model.space.subnets(), protocol, Readout.of(recipe, CPU))
    together = knn(*arguments, progress=progress)
    assert passes == ["k-NN bank", "k-NN queries"]
    monkeypatch.setattr("poa_ds.evaluate.knn.FEATURE_BYTES", 1)
    assert knn(*arguments, progress=progress) == together
    assert len(passes) == 2 + 2 * len(model.space.subnets())


def test_a_k_beyond_the_bank_takes_the_whole_bank_and_is_marked(tmp_path: Path) -> None:
    recipe = tiny("evaluation.bank_images=20")
    bank, queries = make_shards(tmp_path / "bank", 9), make_shards(tmp_path / "queries", 12)
    model = random_weights(recipe)
    protocol = KnnProtocol.of(bank, queries, recipe.evaluation)
    found = knn(model, [Subnet(32, 2)], protocol, Readout.of(recipe, CPU))
    how = protocol.record("fp32")
    assert how["k_at_most"] == 9 and set(found[Subnet(32, 2)]) == {1, 5, 20}
    text = results.table(KnnRow.of(3, how, found))
    assert "k=20*" in text and "k=5*" not in text and "9 images: k is 9" in text


def test_features_that_are_not_finite_have_no_accuracy(tmp_path: Path) -> None:
    recipe = tiny()
    bank, queries = make_shards(tmp_path / "bank", 30), make_shards(tmp_path / "queries", 12)
    model = random_weights(recipe)
    model.norm.bias.data[40] = float("nan")
    protocol = KnnProtocol.of(bank, queries, recipe.evaluation)
    found = knn(model, [Subnet(32, 2), Subnet(48, 2)], protocol, Readout.of(recipe, CPU))
    assert math.isnan(found[Subnet(48, 2)][5]) and found[Subnet(32, 2)][5] > 0
    assert list(KnnRow.of(0, {}, found).knn) == ["32x2"]


def test_raw_pixels_are_compared_at_32_px_at_most(tmp_path: Path) -> None:
    options = tiny("evaluation.resize=36", "evaluation.crop=32").evaluation
    options = dataclasses.replace(options, crop=36)  # above PIXEL_SIDE
    bank, queries = make_shards(tmp_path / "bank", 30), make_shards(tmp_path / "queries", 12)
    found = raw_pixel_floor(KnnProtocol.of(bank, queries, options), Readout.of(tiny(), CPU))

    def pixels(folder) -> torch.Tensor:
        numbers = [int(folder.key(i).removeprefix("image_")) for i in range(len(folder))]
        views = [center_view(torch.from_numpy(image(n)).permute(2, 0, 1), 36, 36) for n in numbers]
        x = F.interpolate(torch.stack(views).float(), (32, 32), mode="bicubic", antialias=True)
        return F.normalize(x.flatten(1), dim=1)

    nearest = (pixels(queries) @ pixels(bank).T).argmax(1)
    right = torch.from_numpy(bank.labels)[nearest] == torch.from_numpy(queries.labels)
    assert found[1] == pytest.approx(100 * right.double().mean().item())


def test_damaged_images_are_replaced_with_their_labels_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = dataclasses.replace(tiny().evaluation, k=(1,))
    sets = {"bank": 30, "queries": 12}
    for name, images in sets.items():
        make_shards(tmp_path / name, images)
    bank, queries = (damage(tmp_path / name, (2, 7)) for name in sets)
    found = raw_pixel_floor(KnnProtocol.of(bank, queries, options), Readout.of(tiny(), CPU))
    told = capsys.readouterr().err
    assert f"2 damaged images of {bank.path} are replaced" in told and bank.key(2) in told
    assert f"2 damaged images of {queries.path} are replaced" in told

    def read(folder: ShardFolder) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit pixels and labels, substitutes among them."""
        sizes = {"resize": options.resize, "crop": options.crop, "batch_size": 30}
        [(images, labels)] = eval_batches(folder, range(len(folder)), **sizes, bad=[])
        assert labels.tolist() != folder.labels.tolist()
        return F.normalize(images.float().flatten(1), dim=1), labels

    (known, labels), (asked, truth) = read(bank), read(queries)
    right = labels[(asked @ known.T).argmax(1)] == truth
    assert found[1] == pytest.approx(100 * right.double().mean().item())


def test_classes_are_matched_by_name_and_unlabelled_images_left_out(tmp_path: Path) -> None:
    options = tiny().evaluation
    bank, queries = make_shards(tmp_path / "bank", 30), make_shards(tmp_path / "queries", 12)
    queries.classes = ("cat", "ant", "bee")
    labels = queries.labels.copy()
    labels[3] = -1
    queries.labels = labels
    split = KnnProtocol.of(bank, queries, options).queries
    names = [queries.classes[label] for i, label in enumerate(labels) if i != 3]
    assert [bank.classes[label] for label in split.labels] == names
    assert 3 not in split.rows


def test_mistakes_name_the_folder(tmp_path: Path) -> None:
    options = tiny().evaluation
    bank, queries = make_shards(tmp_path / "bank", 30), make_shards(tmp_path / "queries", 12)
    with pytest.raises(UsageError, match="the same images"):
        KnnProtocol.of(bank, bank, options)
    queries.classes = ("ant", "bee", "dog")
    with pytest.raises(UserError, match=r"queries has 1 classes that the bank .* lacks: dog;"):
        KnnProtocol.of(bank, queries, options)
    queries.classes, queries.labels = bank.classes, np.full(12, -1)
    with pytest.raises(UserError, match="queries has no labels"):
        KnnProtocol.of(bank, queries, options)


def make_run(folder: Path, *overrides: str) -> Recipe:
    """A run folder with teachers of steps 0 and 20."""
    make_shards(folder / "train", 40)
    make_shards(folder / "val", 25)
    data = (f"data.train={folder / 'train'}", f"evaluation.queries={folder / 'val'}")
    recipe = tiny(*data, *overrides)
    for step in (0, 20):
        torch.manual_seed(step)
        model = random_weights(dataclasses.replace(recipe, seed=step))
        tensors = {f"backbone.{name}": t for name, t in model.state_dict().items()}
        publish(folder, tensors, recipe, step)
    return recipe


def test_the_command_measures_prints_and_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path)
    assert cli.main(["eval", "knn", str(tmp_path), "--sizes", "small,48x3", "--floors"]) == 0
    first = results.read(tmp_path / "knn.jsonl")
    assert [row.step for row in first] == [20] and set(first[0].knn) == {"32x2", "48x3"}
    assert set(first[0].random_weights) == {"32x2", "48x3"} and first[0].raw_pixels.keys() == {
        1,
        5,
        20,
    }
    assert "raw pixels" in capsys.readouterr().out
    command = ["eval", "knn", str(tmp_path / "teacher" / "step00000000"), "--bank-images", "20"]
    assert cli.main([*command, "--sizes", "32x2"]) == 0
    kept = right.at(tmp_path / "knn_right.jsonl", 20, 20, first[0].protocol)
    assert {size: 100 * bits.mean() for size, bits in kept.items()} == pytest.approx(
        {size: by_k[20] for size, by_k in first[0].knn.items()}
    )
    row = results.read(tmp_path / "knn.jsonl")[1]
    assert row.step == 0 and row.protocol["bank"]["images"] == 20
    # step 0 has the weights of seed 0, which are the random floor
    assert cli.main(["eval", "knn", str(tmp_path), "--step", "0", "--sizes", "all"]) == 0
    assert results.read(tmp_path / "knn.jsonl")[2].knn["32x2"] == first[0].random_weights["32x2"]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--sizes", "33x2"], 2, "size '33x2' is not in the space"),
        (["--step", "5"], 1, "no teacher of step 5; there are those of 0, 20"),
        (["--queries", "nowhere"], 1, "nowhere"),
        (["--bank-images", "3"], 2, "evaluation.bank_images 3"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    make_run(tmp_path)
    assert cli.main(["eval", "knn", str(tmp_path), *words]) == status
    assert message in capsys.readouterr().err
    assert not (tmp_path / "knn.jsonl").exists()

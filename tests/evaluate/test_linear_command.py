"""poa-ds eval linear: what it learns from, what it chooses, and that a stopped one goes on."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from poa_ds.cli import main
from poa_ds.data.image.views import decode, random_crop
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.order import VIEWS, Order, keyed
from poa_ds.evaluate import groups, score_rows
from poa_ds.evaluate.embed.sources import Shards
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.features import kinds_of_blocks
from poa_ds.evaluate.linear import command as linear_command
from poa_ds.evaluate.linear import data as linear_data
from poa_ds.evaluate.linear import task as linear_task
from poa_ds.evaluate.linear.classifiers import Classifiers, units
from poa_ds.evaluate.linear.data import RandomCrops
from poa_ds.evaluate.linear.training import Training
from poa_ds.evaluate.score_rows import ScoreRow
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_shards(tmp_path / "train", 33)
    make_shards(tmp_path / "val", 12, first=100)
    return make_teacher(tmp_path / "run")


def linear(run: Path, *more: object) -> int:
    places = ("--train", run.parent / "train", "--val", run.parent / "val", "--workers", 0)
    short = ("--sizes", "32x2", "--steps", 6, "--batch", 8, "--learning-rates", "0.05,0.5")
    return main([str(word) for word in ("eval", "linear", run, *places, *short, *more)])


def rows(run: Path) -> list[ScoreRow]:
    """Those of top-1."""
    found = score_rows.read(run / "evaluations.jsonl")
    return [row for row in found if row.metric.startswith("top1")]


def test_on_fixed_features_it_is_what_torch_s_own_parts_learn(run: Path) -> None:
    """The chosen classifier again: nn.Linear's function, autograd, SGD and cosine, row by row."""
    assert linear(run, "--crops", "centre", "--keep-features") == 0
    by_held, by_val = rows(run)
    assert (by_held.chosen_by, by_val.chosen_by) == ("held_out", "val")
    assert by_held.value <= by_val.value and by_held.protocol["held_out"]["images"] == 3
    train, val = sets(run, 33, 12)
    x, labels = train.rows("32x2")
    other, wanted = val.rows("32x2")
    kinds = {unit.kind: unit.columns for unit in units("32x2", kinds_of_blocks(32, 2))}
    columns, rate = kinds[by_held.setting["kind"]], by_held.setting["rate"]
    [unit] = [
        u
        for u in units("32x2", kinds_of_blocks(32, 2), (0.05, 0.5))
        if u.kind == by_held.setting["kind"]
    ]
    for row in (by_held, by_val):
        assert row.setting["of_kinds"][row.setting["kind"]] == pytest.approx(row.value)
        assert row.setting["of_kinds"].keys() == kinds.keys()
    assert max(by_val.setting["of_kinds"].values()) == pytest.approx(by_val.value)
    start = Classifiers(unit, 3, seed=0, device="cpu")
    number = unit.rates.index(rate)
    weight, bias = (p[number].clone().requires_grad_() for p in (start.weight, start.bias))
    sgd = torch.optim.SGD([weight, bias], rate * 8 / 256, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 6)
    held = held_rows(labels)
    learn, order = torch.arange(33)[~held], Order(30, 0)
    for step in range(6):
        taken = learn[torch.from_numpy(order.rows(8 * step, 8))]
        sgd.zero_grad()
        F.cross_entropy(F.linear(x[taken][:, columns], weight, bias), labels[taken]).backward()
        sgd.step()
        cosine.step()
    for part, truth, percent in (
        (other, wanted, by_held.value),
        (x[held], labels[held], by_held.setting["held_out"]),
    ):
        right = F.linear(part[:, columns], weight, bias).argmax(1) == truth
        assert percent == pytest.approx(100 * float(right.double().mean()), abs=100 / 12 + 1e-6)


def sets(run: Path, *counts: int) -> list[FeatureSet]:
    """Those that were kept, by their numbers of rows."""
    found = map(FeatureSet.at, (run / "features" / "step00000003").iterdir())
    by_rows = {each.setting["rows"]: each for each in found}
    return [by_rows[count] for count in counts]


def held_rows(labels: torch.Tensor) -> torch.Tensor:
    from poa_ds.evaluate.split import drawn

    return drawn(labels, 0.1, seed=0, leaving=1)


def test_no_held_out_image_is_in_a_batch(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    of_rows = linear_data.of_rows

    def watched(features: dict, labels: torch.Tensor, **words: object) -> object:
        seen.extend(features.values())
        return of_rows(features, labels, **words)

    monkeypatch.setattr(linear_task.linear_data, "of_rows", watched)
    assert linear(run, "--crops", "centre", "--keep-features") == 0
    [train] = sets(run, 33)
    x, labels = train.rows("32x2")
    held = x[held_rows(labels)]
    assert len(held) == 3 and seen[0].shape == (30, 96)
    assert not (seen[0][:, None] == held).all(2).any()


def test_crops_are_those_of_their_positions_wherever_a_run_begins(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "train", 20)
    learn = np.arange(1, 20, 2)
    crops = RandomCrops(folder, learn, 16, 6, 5)

    def pixels(images: torch.Tensor) -> list[torch.Tensor]:
        return [images.float().flatten(1)]

    widths = {"32x2": 3 * 16 * 16}
    every = list(crops.batches(pixels, widths, CPU, steps=range(4), workers=0))
    late = list(crops.batches(pixels, widths, CPU, steps=range(2, 4), workers=0))
    order = Order(10, 5)
    for step, (features, labels) in enumerate(every):
        numbers = learn[order.rows(6 * step, 6)]
        assert labels.tolist() == [folder.label(int(row)) for row in numbers]
        for place, row in enumerate(numbers):
            rng = keyed(VIEWS, 5, 6 * step + place)
            wanted = random_crop(decode(folder.read(int(row))), 16, (0.08, 1.0), 0.5, rng)
            assert torch.equal(features["32x2"][place], wanted.float().flatten())
    for (x, a), (y, b) in zip(every[2:], late, strict=True):
        assert torch.equal(x["32x2"], y["32x2"]) and torch.equal(a, b)


def test_for_a_damaged_image_stands_one_that_is_learnt_from(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = make_shards(tmp_path / "train", 20)
    shard = tmp_path / "train" / folder.shard(4)
    content = bytearray(shard.read_bytes())
    entry = folder.index[4]
    content[entry["offset"] + 40 : entry["offset"] + 60] = bytes(20)
    shard.write_bytes(content)
    other = next(row for row in range(20) if folder.label(row) != folder.label(4))
    crops = RandomCrops(ShardFolder.open(tmp_path / "train"), np.array([4, other]), 16, 4, 0)
    [(_, labels)] = crops.batches(
        lambda images: [images.float().flatten(1)], {"": 768}, CPU, steps=range(1), workers=0
    )
    assert labels.tolist() == [folder.label(other)] * 4
    crops.say_damage()
    assert "others stand for 1 damaged images" in capsys.readouterr().err


@pytest.mark.parametrize("crops", ["random", "centre"])
def test_a_stopped_command_goes_on_to_the_very_same_numbers(
    run: Path, crops: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = ("--crops", crops, "--sizes", "32x2,48x2", "--save-every", 2)
    assert linear(run, *words) == 0
    wanted = rows(run)
    learn, steps = Classifiers.learn, []

    def stop_in_the_fourth(self: Classifiers, *args: object) -> None:
        learn(self, *args)
        if self.unit.kind == "1 block" and self.unit.size == "48x2":
            steps.append(args[2])
            if len(steps) == 4:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Classifiers, "learn", stop_in_the_fourth)
    assert linear(run, *words) == os.EX_TEMPFAIL
    assert "stopped and saved" in capsys.readouterr().out and len(steps) == 4
    assert linear(run, *words) == 0
    assert len(steps) == 6  # and none twice
    again = rows(run)[len(wanted) :]
    for one, other in zip(wanted, again, strict=True):
        assert (one.size, one.value, one.setting) == (other.size, other.value, other.setting)
    assert not (run / "linear").exists() and not (run / "features").exists()


def test_a_killed_command_goes_on_from_its_last_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert linear(run) == 0
    save, saved = Training.save, []

    def killed(self: Training, folder: Path, step: int) -> None:
        save(self, folder, step)
        saved.append(step)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "save", killed)
    assert linear(run, "--save-every", 2) == 130
    assert linear(run, "--save-every", 2) == 0
    one, other = rows(run)[0], rows(run)[2]
    assert saved == [2, 4] and (one.value, one.setting) == (other.value, other.setting)


@pytest.mark.parametrize("kept", [False, True])
def test_a_kill_at_the_end_of_a_group_loses_no_row_and_no_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """kept: whether the rows of the group have just come onto the disk."""
    words = ("--sizes", "32x2,48x2", "--save-every", 2)
    assert linear(run, *words) == 0
    wanted, replace_text, run_training, firsts = (
        rows(run),
        groups.replace_text,
        Training.run,
        [],
    )

    def killed(path: Path, text: str) -> None:
        if path.name != "rows.jsonl":
            return replace_text(path, text)
        if kept:
            replace_text(path, text)
        raise KeyboardInterrupt

    def noted(self: Training, *args: object, first: int, **more: object) -> bool:
        firsts.append(first)
        return run_training(self, *args, first=first, **more)

    monkeypatch.setattr(Training, "run", noted)
    monkeypatch.setattr(groups, "replace_text", killed)
    assert linear(run, *words) == 130
    monkeypatch.setattr(groups, "replace_text", replace_text)
    assert linear(run, *words) == 0
    assert firsts == ([0] if kept else [0, 4])  # both sizes fit into one group
    again = rows(run)[len(wanted) :]
    assert [(r.size, r.name, r.value, r.setting) for r in again] == [
        (r.size, r.name, r.value, r.setting) for r in wanted
    ]
    assert not (run / "linear").exists()


def test_published_holds_nothing_out_and_says_when_it_is_not_published(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert linear(run, "--published", "--crops", "centre", "--json") == 0
    [row] = rows(run)
    assert row.name == "linear_top1_best_on_val" and row.protocol["held_out"] is None
    assert row.protocol["train"]["images"] == 33 and row.protocol["published"] is False
    assert json.loads(capsys.readouterr().out)[0]["name"] == row.name


CHANGES = [
    {"published": False},
    {"subset": 0.1},
    {"shots": 5},
    {"crops": "centre"},
    {"learning_rates": linear_command.RATES[1:]},
    {"batch": 1024},
    {"steps": 12_501},
    {"epochs": 10},
    {"resize": 224},
    {"crop": 192},
    {"images": 199_999},  # for fewer than 200,000 other steps are the default
]


@pytest.mark.parametrize("change", [{}, {"taps": "last4"}, {"precision": "bf16"}, *CHANGES])
def test_published_is_what_has_the_published_numbers_but_for_precision(
    tmp_path: Path, change: dict
) -> None:
    """Of 200,000 images, which are not read."""
    few = {"subset": 1.0, "shots": None, "seed": 0}
    length = {"batch": None, "steps": None, "epochs": None}
    given = {"published": True, "crops": "random", "taps": "even4", **few, **length}
    given |= {"learning_rates": linear_command.RATES, "images": 200_000}
    args = SimpleNamespace(**given | {"resize": 256, "crop": 224, "precision": "fp32"} | change)
    recipe = SimpleNamespace(evaluation=args)
    reader = SimpleNamespace(recipe=recipe, readout=SimpleNamespace(precision=args.precision))
    images = Shards(make_shards(tmp_path / "val", 3))
    rows = np.arange(args.images), np.arange(0)
    cache = SimpleNamespace(reader=reader, feature=args.taps)
    found = linear_command.protocol_of(images, images, *rows, cache, args)
    assert found["published"] == (change not in CHANGES)


def test_few_labels_are_learnt_from_under_a_name_of_their_own(run: Path) -> None:
    assert linear(run, "--crops", "centre", "--shots", 4) == 0
    assert linear(run, "--crops", "centre", "--subset", "50%") == 0
    shots, _, share, _ = rows(run)
    assert (shots.name, share.name) == ("linear_top1_4_per_class", "linear_top1_of_50%")
    assert shots.protocol["train"]["images"] + shots.protocol["held_out"]["images"] == 12
    assert share.protocol["train"]["images"] + share.protocol["held_out"]["images"] == 18


def test_the_cost_is_said_and_a_dry_run_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(run.rglob("*"))
    assert linear(run, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "6 steps x 8 images x 1 sizes = " in out and "12 images x 1 sizes" in out
    assert linear(run, "--dry-run", "--crops", "centre") == 0
    assert "33 images x 1 sizes" in capsys.readouterr().out
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        (lambda t: ("--val", t / "train"), 2, "hold the same images"),
        (lambda t: ("--val", t / "nowhere"), 1, "nowhere"),
        (lambda t: ("--train", one_class(t)), 1, "one class: there is nothing to separate"),
        (lambda t: ("--train", one_each(t)), 1, "none can be held out"),
    ],
)
def test_what_cannot_be_learnt_or_measured_is_named(
    run: Path,
    change: Callable[[Path], tuple],
    status: int,
    named: str,
    capsys: pytest.CaptureFixture,
) -> None:
    assert linear(run, "--crops", "centre", *change(run.parent)) == status
    assert named in capsys.readouterr().err


def one_class(folder: Path) -> Path:
    make_shards(folder / "alike", 1)
    return folder / "alike"


def one_each(folder: Path) -> Path:
    make_shards(folder / "each", 3)
    return folder / "each"

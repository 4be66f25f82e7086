"""The front door from Python: what it starts, shows, returns, and how a failure reads."""

import inspect
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import poa_ds
from poa_ds import cli, front
from poa_ds.checkpoint import folders
from poa_ds.evaluate.embed.inside import Features
from poa_ds.recipe import load
from poa_ds.system.errors import UsageError, UserError
from poa_ds.track.metrics_file import read_rows
from tests.evaluate.test_embed import COUNT, run, tree  # noqa: F401 - fixtures
from tests.run.test_training import environment
from tests.support import wandb_runs
from tests.support.shards import image, save

LOSS = "loss/total"
TINY = {
    "tracking": "none",
    "log_every": 1,
    "backbone": {
        "width": {"min": 32, "max": 48, "step": 16},
        "depth": {"min": 2, "max": 3, "step": 1},
        "names": {"little": "32x2"},
    },
    "heads": {"prototypes": (32, 48), "hidden": 48, "bottleneck": 16},
    "batch": {"slots": 2, "images_per_slot": 4},
    "schedule": {"epochs": 1, "steps_per_epoch": 3},
    "data.workers": 0,
}


def test_values_of_python_become_those_of_the_recipe() -> None:
    given = TINY | {"schedule.min_lr": 1e-5, "evaluation": {"k": (10, 20)}, "seed": 3}
    words = [f"{key}={front._text(value)}" for key, value in given.items()]
    words += [f"data.mix={front._text({'a/b': 2, 'c,d: e': 1.5})}"]
    words += ["data.train=", "evaluation.queries="]
    found = load.recipe(Path("photos"), words)
    assert found.schedule.min_lr == 1e-5 and found.schedule.warmup_epochs > 0
    assert found.heads.prototypes == (32, 48) and found.evaluation.k == (10, 20)
    assert dict(found.data.mix) == {"a/b": 2, "c,d: e": 1.5} and found.tracking == "none"


def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="did you mean photos"):
        poa_ds.train(tmp_path, recipe="photo", out=out)
    with pytest.raises(UsageError, match=r"schedule\.epoch"):
        poa_ds.train(tmp_path, recipe="photos", out=out, schedule={"epoch": 3})
    with pytest.raises(UsageError, match=r"data\.train is empty"):
        poa_ds.train("", recipe="photos", out=out)
    assert not out.exists()


def test_the_call_has_the_function_s_signature() -> None:
    from poa_ds import train

    assert callable(poa_ds.train) and train is poa_ds.train and train.parser()
    assert list(inspect.signature(type(train).__call__).parameters)[:3] == [
        *("images", "recipe", "out")
    ]


def test_features_are_those_of_the_network_of_each_size(
    run: Path,  # noqa: F811
    tree: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    found = poa_ds.embed(run, tree, ["32x2", "48x3"], batch_size=4)
    assert isinstance(found, Features) and list(found.sizes) == ["32x2", "48x3"]
    pixels = np.stack([image(number, 32, 32) for number in range(COUNT)])
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    images = torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    for size in found.sizes:
        np.testing.assert_allclose(found[size], poa_ds.load(run, size)(images), atol=1e-5)
    assert found.classes == ["ant", "bee"] and found.labels.tolist() == [0] * 5 + [1] * 4
    assert found.keys[0] == "ant/0.png"
    (tmp_path / "list.txt").write_text("tree/bee/7.png\ntree/ant/2.png\n")
    few = poa_ds.embed(run, tmp_path / "list.txt", "32x2", out=tmp_path / "kept")
    np.testing.assert_allclose(few["32x2"], found["32x2"][[7, 2]], atol=1e-6)
    again = poa_ds.embed(run, tmp_path / "list.txt", "32x2", out=tmp_path / "kept")
    assert np.array_equal(again["32x2"], few["32x2"])
    with pytest.raises(UserError, match="17x3"):
        poa_ds.embed(run, tree, "17x3")


def test_sizes_are_those_of_the_command(run: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    assert cli.main(["sizes", str(run), "--json"]) == 0
    assert poa_ds.sizes(run) == json.loads(capsys.readouterr().out)
    state = poa_ds.extract(run, "32x2")
    network, images = poa_ds.load(run, "32x2"), torch.randn(2, 3, 32, 32)
    assert torch.equal(state.network()(images), network(images))


def test_a_size_goes_into_a_folder_as_the_command_writes_it(
    run: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    options = {"format": "state-dict", "half": True}
    state = poa_ds.extract(run, "32x2", out=tmp_path / "python", **options)
    assert "largest difference to the elastic network" in capsys.readouterr().out
    words = ["--size", "32x2", "--out", str(tmp_path / "command"), "--format", "state-dict"]
    assert cli.main(["extract", str(run), *words, "--half"]) == 0
    names = sorted(path.name for path in (tmp_path / "command").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "python").iterdir())
    for name in names:
        written = [(tmp_path / part / name).read_bytes() for part in ("python", "command")]
        assert written[0] == written[1], name
    assert torch.equal(state["norm.weight"], poa_ds.extract(run, "32x2")["norm.weight"])
    assert state["norm.weight"].dtype == torch.float32
    with pytest.raises(UserError, match="17x3' is not in the space"):
        poa_ds.extract(run, "17x3", out=tmp_path / "none")
    with pytest.raises(UsageError, match="name `out`"):
        poa_ds.extract(run, "32x2", half=True)
    with pytest.raises(UsageError, match="the folder of a run"):
        poa_ds.extract(poa_ds.load(run), "32x2", out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_training_is_awaited_shown_and_fails_in_its_own_words(
    tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    for number in range(24):
        part = "val" if number % 4 == 0 else "train"
        save(tmp_path / part / f"kind{number % 2}" / f"{number}.jpg", number)
    words = {"recipe": "photos", "out": tmp_path / "run", "queries": tmp_path / "val"}
    training = poa_ds.train(tmp_path / "train", **words, **TINY)
    assert training.running and "is training" in repr(training)
    assert training.wait() is training and not training.running
    shown = capfd.readouterr().out
    assert "step 3" in shown and shown == training.log.read_text()
    assert {row["size"] for row in training.sizes()} == {"32x2", "32x3", "48x2", "48x3"}
    assert all(row["knn"] is not None for row in training.sizes())
    assert training.report().read_text("utf-8").startswith("<!")
    assert training.load("little")(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
    assert training.embed(tmp_path / "val", "little")["32x2"].shape == (6, 32)
    capfd.readouterr()
    words["queries"] = tmp_path / "train"  # the bank is data.train: the same images
    words["out"] = tmp_path / "no"
    message = r"status 2\npoa_ds\.train: error: evaluation\.queries"
    with pytest.raises(UserError, match=message) as end:
        poa_ds.train(tmp_path / "train", **words, **TINY).wait(show=False)
    assert "are the same images" in str(end.value) and not capfd.readouterr().out


@pytest.mark.slow
def test_two_processes_are_stopped_save_and_go_on_by_the_same_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for number in range(16):
        save(tmp_path / "images" / f"{number}.jpg", number)
    longer = TINY | {"schedule": {"epochs": 1, "steps_per_epoch": 100_000}, "tracking": "wandb"}
    words = {"recipe": "photos", "out": tmp_path / "run", "processes": 2}
    training = poa_ds.train(tmp_path / "images", **words, **longer)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while training.running and not (metrics.exists() and len(read_rows(metrics)) > 2):
        time.sleep(0.05)
    assert training.stop().wait(show=False) is training and not training.running
    assert "ended with status 75" in repr(training)
    kept = read_rows(metrics)
    saved = folders.step_of(folders.newest(tmp_path / "run" / "checkpoints"))
    assert saved == kept[-1]["step"] > 0
    tracked = (tmp_path / "run" / "wandb_id.txt").read_text()
    again = poa_ds.train(tmp_path / "images", **words, **longer)
    while again.running and read_rows(metrics)[-1]["step"] == saved:
        time.sleep(0.05)
    again.stop().wait(show=False)
    rows = read_rows(metrics)
    steps = [row["step"] for row in rows if LOSS in row]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > saved
    assert again.log.read_text().count("processes      2 on cpu") == 2
    assert (tmp_path / "run" / "wandb_id.txt").read_text() == tracked
    [found] = wandb_runs.runs(tmp_path / "run" / "wandb").values()  # of the second part alone
    points = found.points(LOSS)
    assert found.id == tracked.strip() and len(points) > saved
    assert points == [(row["step"], row[LOSS]) for row in rows if LOSS in row][: len(points)]

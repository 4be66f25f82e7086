"""poa-ds adapt: from a ViT of timm's shape and a folder of images to a trained run, in one line."""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from poa_ds import adapt, cli, launch
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.evaluate import results
from poa_ds.export import import_weights
from poa_ds.export.adapt_job import Job
from poa_ds.export.import_weights import FEATURES
from poa_ds.methods.method import method
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import exit_status
from poa_ds.system import stopping
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.typed_yaml import plain
from tests.support.shards import image

ROOT = Path(__file__).parents[1]
SHORT = ["batch.slots=1", "batch.images_per_slot=8", "distill.hidden=32", "schedule.epochs=2"]
SHORT += ["schedule.warmup_epochs=0.5", "data.workers=0", "tracking=none", "report=false"]
SHORT += ["evaluation.every_epochs=0"]
TIME_LIMIT_SECONDS = 1200


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Of a command for a tiny ViT and 72 images in three classes."""
    torch.manual_seed(0)
    size = {"img_size": 32, "embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0}
    network = timm.create_model("vit_small_patch16_224", **size)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    for split, numbers in (("train", range(48)), ("val", range(100, 124))):
        for number in numbers:
            path = tmp_path / "images" / split / "abc"[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(number)).save(path)
    places = {"weights": "w.safetensors", "images": "images", "out": "run"}
    found = [part for key, name in places.items() for part in (f"--{key}", str(tmp_path / name))]
    return ["adapt", *found, "--widths", "64,128", "--depths", "1,2", *SHORT]


def test_a_dry_run_tells_the_stages_with_sizes_and_cost_and_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--dry-run"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [*lines] == ["shard", "import", "before", "train", "table", "report"]
    assert "48 images (train), 24 images (val)" in lines["shard"]
    assert "4 sizes from 64x1 to 128x2, 32 px, --rebase rotate" in lines["import"]
    assert lines["train"].startswith("12 steps of 8 images (2 epochs), method seed; ")
    assert "hours on one" in lines["train"] and "estimated" in lines["train"]
    assert cli.main([*words, "--dry-run", "--then-poa", "3"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [*lines] == ["shard", "import", "before", "train", "poa", "table", "report"]
    assert lines["poa"].startswith("18 steps of 8 images (3 epochs), method poa; ")
    assert not (tmp_path / "run").exists()


def test_wrong_use_is_told_before_any_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, told in (
        (["--images", str(tmp_path / "none")], "none: no such folder"),
        (["--config", "elastic_any_foldr"], "did you mean elastic_any_folder"),
        (["shedule.epochs=1"], "schedule"),
        (["--depths", "1,3"], "--depths must end with 2"),
        (["--image-size", "50"], "crops.global_size 50 is not a multiple"),
        (["batch.images_per_slot=32"], "use steps of at most 24 images (batch.slots"),
        (["backbone.width.min=64"], "backbone.width.min: give --widths"),
        (["crops={global_size: 64}"], "crops.global_size: give --image-size"),
        (["data.train=x", "start=y"], "data.train: give --images; start: it is what --weights"),
    ):
        for dry in ([], ["--dry-run"]):
            assert cli.main([*words, *more, *dry]) == 2
            assert told in capsys.readouterr().err
            assert not (tmp_path / "run").exists()
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    assert cli.main(words) == 1
    assert "w.safetensors is missing or damaged" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stage_that_fails_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "images" / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    assert cli.main(words) == 1
    told = capsys.readouterr()
    assert "[1/6] shard" in told.out and "no usable image" in told.err
    assert "the stage `shard` ended with status 1" in told.err
    assert cli.main([*words, "--rebase", "sort"]) == 2  # another command in the same folder
    assert "was begun with rebase rotate and now sort" in capsys.readouterr().err
    assert cli.main([*words, "--then-poa", "1"]) == 1  # a stage more is no other command
    assert cli.main([*words, "--then-poa", "2"]) == 2
    assert "was begun with poa 1.0 and now 2.0" in capsys.readouterr().err


def test_the_recipe_has_the_network_the_data_and_a_queue_that_fits(
    words: list[str], tmp_path: Path
) -> None:
    parser = argparse.ArgumentParser()
    adapt.add_arguments(parser)
    more = ["distill.queue=1000", "precision=bf16", "backbone.activation_checkpointing=true"]
    more += ["backbone.residual=precision", "backbone.drop_path=0.1"]
    job = Job(parser.parse_intermixed_args([*words[1:], *more]))
    _, _, network = import_weights.read(job.args, job.args.weights)
    [recipe] = adapt.recipes_of(job, network, 47)
    assert recipe.distill.queue == 16  # whole steps of 8 in half of 47 images
    assert recipe.start == recipe.distill.teacher == str(tmp_path / "run" / "start")
    assert recipe.data.train == str(tmp_path / "run" / "shards" / "train")
    assert recipe.evaluation.queries == str(tmp_path / "run" / "shards" / "val")
    assert (recipe.backbone.widths, recipe.crops.global_size) == ((64, 128), 32)
    assert (recipe.backbone.residual, recipe.backbone.drop_path) == ("precision", 0.1)
    assert recipe.backbone.activation_checkpointing and recipe.precision == "bf16"
    assert recipe.schedule.epochs == 2 and recipe.objective.method == "seed"
    again = load.from_dict(plain(recipe))  # a training takes it as it is
    assert str(derived.space(again).intact) == "128x2"


def test_the_second_stage_is_poa_on_what_the_first_one_left(
    words: list[str], tmp_path: Path
) -> None:
    """All that says nothing of the method is the first recipe's."""
    parser = argparse.ArgumentParser()
    adapt.add_arguments(parser)
    job = Job(parser.parse_intermixed_args([*words[1:], "--then-poa", "4", "mlflow.run_name=mine"]))
    _, _, network = import_weights.read(job.args, job.args.weights)
    first, then = adapt.recipes_of(job, network, 48)
    out = tmp_path / "run"
    assert (first.output_dir, then.start, then.output_dir) == (*[str(out)] * 2, str(out / "poa"))
    assert then.objective == Recipe().objective and not then.distill.teacher
    assert then.crops.local_count == 8 and first.crops.local_count == 0
    assert (then.schedule.epochs, then.mlflow.run_name) == (4, "mine_then_poa")
    numbers = derived.of(then, 48)
    assert numbers.steps == 24 and 0 < numbers.ibot_start_step < 6
    same = "seed precision draws backbone augmentation batch optimizer data evaluation checkpoint"
    assert all(getattr(first, key) == getattr(then, key) for key in same.split())
    assert method(load.from_dict(plain(then))).networks().backbone.space.intact == Subnet(128, 2)


def test_a_stage_behind_a_launcher_can_be_interrupted(words: list[str], tmp_path: Path) -> None:
    numbers = (signal.SIGINT, *stopping.requests())
    before = [signal.getsignal(number) for number in numbers]
    for path in (tmp_path / "images" / "train").rglob("*.png"):
        path.write_bytes(b"no image")
    try:
        launch.Asked()  # as the stage `train` leaves it
        assert cli.main(words) == 1
        assert {signal.getsignal(number) for number in numbers} == {signal.default_int_handler}
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "poa_ds.cli", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_in(stage: str, words: list[str], out: Path) -> None:
    """Start the command and kill it when it says that it comes to that stage."""
    process = start(words)
    assert process.stdout is not None
    assert any(line.rstrip().endswith(f"] {stage}") for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    process.wait(TIME_LIMIT_SECONDS)
    process.stdout.close()
    end = time.monotonic() + TIME_LIMIT_SECONDS
    while any(str(out) in " ".join(p.info["cmdline"] or ()) for p in others()):
        assert time.monotonic() < end, "a process outlives the command"
        time.sleep(0.2)


def others() -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if "poa_ds.train" in str(p.info["cmdline"])]


@pytest.mark.slow
def test_one_line_goes_on_after_kills_and_ends_with_a_trained_run(
    words: list[str], tmp_path: Path
) -> None:
    out, then = tmp_path / "run", tmp_path / "run" / "poa"
    words = [*words, "--then-poa", "1", "heads.prototypes=[16]", "heads.hidden=16"]
    for stage in ("import", "train", "poa"):
        kill_in(stage, words, out)
    last = start(words)
    text = last.communicate(timeout=TIME_LIMIT_SECONDS)[0]
    assert last.returncode == 0, text
    assert f"{out / 'start'} is there" in text and f"{out / 'shards' / 'val'} is there" in text
    ended = exit_status.read(out)
    assert ended is not None and ended.status == exit_status.DONE and ended.step == 12
    begun, trained = load_teacher(out / "start")[0], load_teacher(out)[0]
    pairs = zip(begun.parameters(), trained.parameters(), strict=True)
    assert any((a - b).abs().max() > 1e-4 for a, b in pairs)  # it has learned something
    assert (out / "start" / FEATURES).is_file() and RunFolder(out).report.is_file()
    sizes = {"64x1", "64x2", "128x1", "128x2"}
    last_step = exit_status.read(then)
    assert last_step is not None and (last_step.status, last_step.step) == (exit_status.DONE, 6)
    assert load.kept_recipe(then / "config.yaml").start == str(out)
    for place in (out / "start", out, then):
        assert results.read(RunFolder(place).knn)[-1].knn.keys() == sizes
    assert all(size in text for size in sizes)

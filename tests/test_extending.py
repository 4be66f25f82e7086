"""A backbone and methods that stand outside of the package, each with one line in its table.

docs/extending.md tells how they are made.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from poa_ds import cli
from poa_ds.export.extract import extract
from poa_ds.model import form
from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.methods import METHODS
from tests.distributed.programs.launch import ROOT, launch
from tests.support.shards import make_shards
from tests.toys.table import register

PROGRAM = "tests.distributed.programs.extended"
RECIPE = [
    *("precision=fp32", "tracking=none", "report=false", "log_every=1"),
    *("backbone.name=bag", "backbone.names={}"),
    *("backbone.width={min: 16, max: 32, step: 8}", "backbone.depth={min: 1, max: 3, step: 1}"),
    *("backbone.patch_size=8", "backbone.drop_path=0", "heads.prototypes=[24,32]"),
    *("heads.hidden=32", "heads.bottleneck=16", "crops.global_size=32", "crops.local_size=16"),
    *("crops.local_count=2", "augmentation.blur_kernel=3", "schedule.warmup_epochs=0.1"),
    *("batch={slots: 2, images_per_slot: 6}", "schedule.epochs=1", "schedule.steps_per_epoch=10"),
    *("checkpoint.every_epochs=0.5", "data.workers=0", "evaluation.resize=36"),
    *("evaluation.crop=32", "evaluation.k=[5]", "evaluation.report_k=5"),
    *("evaluation.every_epochs=0", "evaluation.at_start=false", "schedule.base_lr=0.01"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    make_shards(root / "val", 21)
    return root


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toys' lines are gone after a test."""
    monkeypatch.setitem(ARCHITECTURES, "bag", "")
    for name in ("toy dino", "toy siamese", "toy three"):
        monkeypatch.setitem(METHODS, name, "")
    register()


def train(shards: Path, out: Path, method: str, stage: int, *more: str, ranks: int = 2) -> Path:
    """A run of ten steps on two ranks under that ZeRO stage."""
    run = out / "run"
    words = [
        "--config",
        "ds_configs/photos.yaml",
        f"--deepspeed_config=ds_configs/zero{stage}.json",
    ]
    places = [f"data.train={shards}/train", f"evaluation.queries={shards}/val"]
    words += [*RECIPE, *places, f"output_dir={run}", f"objective.method={method}", *more]
    assert launch(PROGRAM, ranks, out, words=words) == {"status": 0}
    return run


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def test_a_toy_method_trains_a_toy_backbone_under_zero_3(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = train(shards, tmp_path, "toy dino", 3)
    losses = [row["loss/dino"] for row in rows(run) if "loss/dino" in row]
    assert len(losses) == 10 and losses[-1] < losses[0]
    assert all(0 < row["health/target_maximum"] <= 1 for row in rows(run) if "loss/dino" in row)
    [measured] = [json.loads(line) for line in (run / "knn.jsonl").open()]
    assert cli.main(["eval", "knn", str(run), "--sizes", "16x1,32x3", "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert all(f"{measured['knn'][size]['5']:.2f}" in said for size in ("16x1", "32x3"))
    out = tmp_path / "plain"
    assert cli.main(["extract", str(run), "--size", "24x2", "--out", str(out), "--check"]) == 0
    assert load_file(out / "state_dict.safetensors")["layers.1.weight"].shape == (24, 24)


def test_poa_trains_the_toy_backbone(shards: Path, tmp_path: Path) -> None:
    run = train(shards, tmp_path, "poa", 2, "evaluation.queries=")
    losses = [row["loss/elastic_dino"] for row in rows(run) if "loss/total" in row]
    assert len(losses) == 10 and min(losses) > 0


@pytest.mark.slow
def test_three_students_train_under_zero_3_as_in_one_process(shards: Path, tmp_path: Path) -> None:
    one = train(shards, tmp_path / "one", "toy three", 1, "evaluation.queries=", ranks=1)
    two = train(shards, tmp_path / "two", "toy three", 3, "evaluation.queries=")
    for alone, together in zip(rows(one)[:5], rows(two)[:5], strict=True):
        assert {"loss/elastic_dino", "loss/elastic2_dino", "loss/imitation2"} <= together.keys()
        for name in together:
            if name.startswith("loss/"):
                # sums in another order, enlarged by Adam step by step
                assert together[name] == pytest.approx(alone[name], rel=1e-4), name


def test_a_method_without_an_average_deploys_its_student(shards: Path, tmp_path: Path) -> None:
    """Ten steps at stage 3 on two ranks, ten more at stage 2 on one."""
    run = train(shards, tmp_path, "toy siamese", 3)
    folder = run / "checkpoints" / "step00000010"
    stored = {key for path in folder.glob("shard-*") for key in load_file(path)}
    assert "predictor.weight|fp32" in stored and not any("|ema" in key for key in stored)
    converted = tmp_path / "converted"
    assert cli.main(["checkpoint", "convert", str(folder), str(converted), "--teacher"]) == 0
    deployed = load_file(run / "teacher" / "step00000010" / "teacher.safetensors")
    for name, tensor in load_file(converted / "teacher.safetensors").items():
        assert torch.equal(deployed[name], tensor), name
    train(shards, tmp_path, "toy siamese", 2, "schedule.epochs=2", ranks=1)
    steps = [row["step"] for row in rows(run) if "loss/siamese" in row]
    assert steps == list(range(1, 21))


def test_plain_names_of_the_toy_lead_back_for_start() -> None:
    model = backbone(load.recipe(Path("photos"), RECIPE))
    found = form.of("bag").from_plain(extract(model, model.space.intact), model.shape)
    own = {name: t for name, t in model.state_dict().items() if "mask_token" not in name}
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("method", ["toy dino", "toy siamese", "single"])
def test_a_plan_is_made_for_any_method(method: str, capsys: pytest.CaptureFixture) -> None:
    words = ["plan", "--config", str(ROOT / "ds_configs" / "photos.yaml"), "--nodes", "1"]
    assert cli.main([*words, "--gpus", "2", *RECIPE, f"objective.method={method}"]) == 0
    assert "32x3" in capsys.readouterr().out


def test_who_is_not_in_a_table_is_refused_by_name(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "poa_ds.train", "--config", "ds_configs/photos.yaml"]
    words += ["--print-config", "objective.method=toy dino"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "objective.method" in done.stderr and "poa" in done.stderr


def test_the_document_shows_the_lines_of_the_tables() -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    assert f'"bag": "{ARCHITECTURES["bag"]}"' in text
    assert f'"toy dino": "{METHODS["toy dino"]}"' in text

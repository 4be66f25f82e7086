"""A finished run of revision 61a1063 is found, inspected, evaluated, extracted, and continues.

run_of_61a1063/ holds it: 8 steps of two ranks at ZeRO stage 2, its shards, and, in continued.json,
what the same revision computed in 4 more steps.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from poa_ds import cli, train
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.places import open_folder
from poa_ds.evaluate import results
from poa_ds.evaluate.features import Readout, random_weights
from poa_ds.evaluate.knn import knn, raw_pixel_floor
from poa_ds.evaluate.knn_protocol import KnnProtocol
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.run import exit_status
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.metrics_file import read_rows
from tests.distributed.programs.launch import PATIENCE_SECONDS, environment, fork, free_port

OLD = Path(__file__).parent / "run_of_61a1063"
DATA = [f"data.train={OLD / 'shards' / 'train'}", f"evaluation.queries={OLD / 'shards' / 'val'}"]

OWN = ["tracking=none", "report=false"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD / "run", tmp_path / "run"))


def test_it_is_found_and_inspected(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["checkpoint", "inspect", str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[:3] == ["step00000008", "8", "64"]
    assert "whole" in printed and "61a1063fb8419f850d664c44648b9a08faf1f92f" in printed
    assert exit_status.read(run) == exit_status.Ended(exit_status.DONE, 8)


def test_its_teacher_has_the_accuracies_of_then(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [word for name in ("bank", "queries") for word in (f"--{name}", str(shards(name)))]
    assert cli.main(["eval", "knn", str(run), *places, "--floors"]) == 0
    *_, then, now = results.read(RunFolder(run).knn)
    assert now.protocol == then.protocol and now.step == then.step == 8
    for size, accuracies in then.knn.items():  # 20 queries; another processor may turn one of them
        assert now.knn[size] == pytest.approx(accuracies, abs=100 / 20)
    assert cli.main(["sizes", str(run)]) == 0
    assert "32x3" in capsys.readouterr().out


def shards(name: str) -> Path:
    return OLD / "shards" / {"bank": "train", "queries": "val"}[name]


def protocol_of(recipe: Recipe) -> KnnProtocol:
    bank, queries = (open_folder(str(shards(name)), recipe.data) for name in ("bank", "queries"))
    return KnnProtocol.of(bank, queries, recipe.evaluation)


def test_one_size_is_extracted_and_the_checkpoint_holds_the_published_teacher(
    run: Path, tmp_path: Path
) -> None:
    words = ["extract", str(run), "--size", "16x2", "--out", str(tmp_path / "one")]
    assert cli.main([*words, "--format", "timm", "--check"]) == 0
    taken_out = tmp_path / "taken_out"
    assert cli.main(["checkpoint", "convert", str(run), str(taken_out), "--teacher"]) == 0
    (published, _, step), (held, _, same_step) = load_teacher(run), load_teacher(taken_out)
    assert step == same_step == 8
    for name, weight in published.state_dict().items():
        assert torch.equal(weight, held.state_dict()[name]), name


@pytest.mark.parametrize(
    "changed", [["evaluation.k=[3]", "evaluation.report_k=3"], ["evaluation.bank_images=18"]]
)
def test_another_protocol_has_its_own_floors(run: Path, changed: list[str]) -> None:
    """They were taken from the first evaluation, or looked up there in vain."""
    words = ["--config", str(run / "config.yaml"), *DATA, *OWN, f"output_dir={run}"]
    printed = train_together([*words, *changed, "schedule.epochs=3"], run)
    assert "k-NN is measured in another way than before: its floors are measured anew" in printed
    recipe = load.recipe(run / "config.yaml", [])  # the run has written down the changed one
    protocol = protocol_of(recipe)
    readout, row = Readout.of(recipe, "cpu"), results.read(RunFolder(run).knn)[-1]
    sizes = derived.space(recipe).subnets()
    assert row.protocol == protocol.record("fp32")
    assert row.raw_pixels == raw_pixel_floor(protocol, readout)
    untrained = knn(random_weights(recipe), sizes, protocol, readout)
    assert row.random_weights == {str(size): by_k for size, by_k in untrained.items()}


def test_random_weights_are_those_that_the_run_began_with(run: Path) -> None:
    recipe = load.recipe(run / "config.yaml", DATA)
    protocol = protocol_of(recipe)
    first, sizes = results.read(RunFolder(run).knn)[0], derived.space(recipe).subnets()
    found = knn(random_weights(recipe), sizes, protocol, Readout.of(recipe, "cpu"))
    for size in sizes:  # 20 queries; another processor may turn one of them
        wanted = first.random_weights[str(size)]
        assert found[size] == pytest.approx(wanted, abs=100 / 20)


@pytest.mark.slow  # two ranks for two of them
@pytest.mark.parametrize(("ranks", "stage"), [(2, 2), (1, 0), (2, 3)])
def test_it_continues_with_the_losses_of_then(run: Path, ranks: int, stage: int) -> None:
    words = ["--config", str(run / "config.yaml"), *DATA, *OWN, f"output_dir={run}"]
    words += ["--deepspeed_config", f"ds_configs/zero{stage}.json"] if stage else []
    printed = train_together([*words, "schedule.epochs=3"], run, ranks)
    assert "continues at step 8" in printed and "floors are measured anew" not in printed
    then = json.loads((OLD / "continued.json").read_text())
    now: dict[str, dict[str, float]] = {step: {} for step in then}
    for row in read_rows(run / "metrics.jsonl"):
        now.get(str(row["step"]), {}).update(row)
    for step, values in then.items():
        # weights that were loaded give the first loss; AdamW magnifies rounding in the others
        tolerance = 1e-5 if step == "9" else 1e-3
        wanted = {name: value for name, value in values.items() if not name.startswith("knn")}
        found = {name: now[step].get(name) for name in wanted}
        assert found == pytest.approx(wanted, rel=tolerance), step
    evaluated = results.read(RunFolder(run).knn)
    assert [row.step for row in evaluated] == [0, 4, 8, 12]
    assert evaluated[-1].raw_pixels == evaluated[0].raw_pixels
    assert (run / "teacher" / "latest").read_text() == "step00000012\n"
    assert (run / "checkpoints" / "latest").read_text() == "step00000012"


def train_together(words: list[str], out: Path, ranks: int = 1) -> str:
    """What rank 0 of the training program prints; all ranks must end well."""
    port, logs = free_port(), [out.parent / f"rank{rank}.log" for rank in range(ranks)]
    processes = [
        fork(_train, environment(rank, ranks, port), log, words) for rank, log in enumerate(logs)
    ]
    for process, log in zip(processes, logs, strict=True):
        process.join(PATIENCE_SECONDS)
        assert process.exitcode == 0, log.read_text()
    return logs[0].read_text()


def _train(words: list[str]) -> None:
    sys.exit(train.main(words))

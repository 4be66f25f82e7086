"""`poa-ds bench methods`: which runs a table has, what of them counts, and that it goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from poa_ds.bench import cost
from poa_ds.bench.methods import basis, report, results, runner, table
from poa_ds.bench.methods.results import Result
from poa_ds.bench.methods.runs import Settings, plan
from poa_ds.bench.methods.table import Variant
from poa_ds.checkpoint.deployed import publish
from poa_ds.cli import main
from poa_ds.export import start
from poa_ds.methods.method import method
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.run import exit_status
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder
from tests.support.shards import make_shards

ROOT = Path(__file__).parents[2]
TINY = """
recipe: photos
against: poa
sizes: [32x2, 64x2]
set: [evaluation.every_epochs=0, batch.images_per_slot=4, "evaluation.k=[5, 20]", data.workers=0,
      checkpoint.every_epochs=0.5]
variants:
  poa: {set: ["backbone.width={max: 64, step: 32}", "backbone.depth.max=2", "backbone.names={}"]}
  alone: {alone: true}
  broken: {set: [evaluation.bank=/no/such/folder]}
"""
PROTOCOL = {
    **{"queries": {"images": 100}, "bank": {"images": 100, "of": 100}},
    **{"crop": 32, "resize": 32, "precision": "fp32"},
}


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    def made(read: table.Table, **changed: object) -> Settings:
        whole = Settings(tmp_path / "out", "data", 2850, (0, 1), tuple(read.variants), 100)
        return replace(whole, **changed)

    return made


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    def made(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return made


@pytest.mark.parametrize("name", table.names())
def test_every_shipped_table_has_recipes_that_train(name: str, settings) -> None:
    """Each is checked by the recipe's own rules; the same images for all, and every size of it."""
    read = table.read(name)
    own = read.head.equal == "own"
    steps = None if own else 100
    found = plan(read, settings(read, seeds=(3,), steps=steps, equal=read.head.equal))
    assert len({run.name for run in found}) == len(found)
    assert {run.variant for run in found} == set(read.variants)
    assert {run.seed for run in found} == {3}
    assert own or ({run.steps for run in found} == {100} and len({r.images for r in found}) == 1)
    for run in found:
        every = {str(subnet) for subnet in derived.space(run.recipe).subnets()}
        assert set(run.sizes) <= every and run.recipe.data.train == "data/train"
    against = [run for run in found if run.variant == read.head.against]
    assert set(against[0].sizes) == set(read.head.sizes)


def test_who_learns_from_another_run_comes_after_it_and_of_the_same_seed(settings) -> None:
    read = table.read("methods")
    found = plan(read, settings(read))
    for at, run in enumerate(found):
        if run.variant == "seed":
            [teacher] = [other for other in found[:at] if other.name in run.needs]
            assert (teacher.seed, str(teacher.folder)) == (run.seed, run.recipe.distill.teacher)
    with pytest.raises(UsageError, match="learns from poa"):
        plan(read, settings(read, variants=("dspnet", "seed")))


def test_who_begins_with_another_run_has_it_before_it_and_as_its_teacher(settings) -> None:
    """Re-based: from a folder of its own. A chain of two comes in its order."""
    read = table.read("from_weights")
    poa = Variant(recipe="photos", start="none_40", set=("backbone.input_scale=0.5",))
    given = Variant(start="runs/mine", set=read.variants["none_40"].set)
    more = {"chain": poa, "given": given} | dict(read.variants)  # asked for in the wrong order
    read = replace(read, variants=more)
    made = settings(read, steps=None, equal="own")
    found = {run.name: run for run in plan(read, made)}
    names, runs = list(found), made.out / "runs"
    for seed in (0, 1):
        plain, turned = found[f"none_40_s{seed}"], found[f"rotate_40_s{seed}"]
        assert plain.recipe.start == plain.recipe.distill.teacher == f"{runs}/source_s{seed}"
        assert plain.needs == turned.needs == (f"source_s{seed}",) and not plain.source
        assert (turned.source, turned.rebase) == (f"{runs}/source_s{seed}", "rotate")
        assert turned.recipe.start == turned.recipe.distill.teacher
        assert turned.recipe.start == f"{made.out}/starts/rotate_40_rotate_s{seed}"
        chain = found[f"chain_s{seed}"].recipe
        assert chain.start == f"{runs}/none_40_s{seed}" and chain.objective.method == "poa"
        order = [names.index(f"{name}_s{seed}") for name in ("source", "none_40", "chain")]
        assert order == sorted(order)
        assert found[f"given_s{seed}"].recipe.start == "runs/mine"
        assert not found[f"given_s{seed}"].needs
    assert {found[f"rotate_{n}_s0"].steps for n in (40, 100, 200)} == {40, 100, 200}
    with pytest.raises(UsageError, match="none_40 begins with source"):
        plan(read, replace(made, variants=("poa_40", "none_40")))


def test_a_start_is_the_source_in_another_basis(tmp_path: Path, settings, written) -> None:
    """The last norm has no factors here: features are turned, and what is between them stays."""
    make_shards(tmp_path / "data" / "train", 24)
    alone = ["backbone.width={min: 64, max: 64}", "backbone.depth={min: 2, max: 2}"]
    recipe = load.recipe(Path("photos"), [*alone, "backbone.names={}"])
    network = method(recipe).networks().backbone
    tensors = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    publish(tmp_path / "source", tensors, recipe, 7)
    text = TINY + "  moved: {start: %s, rebase: rotate, set: %s}\n"
    sizes = '["backbone.width={max: 64, step: 32}", "backbone.depth.max=2", "backbone.names={}"]'
    read = table.read(written(text % (tmp_path / "source", sizes)))
    data = str(tmp_path / "data")
    [run] = plan(read, settings(read, data=data, seeds=(0,), variants=("moved",)))
    basis.write(run)
    begun = method(run.recipe).networks()
    start.begin(begun, run.recipe.start)
    images = torch.randn(5, 3, 32, 32)
    whole, half = (Subnet(width, 2) for width in (64, 32))
    theirs, ours = (x(images, whole)[:, 0] for x in (network, begun.backbone))
    assert torch.allclose(theirs @ theirs.T, ours @ ours.T, rtol=1e-3)
    assert not torch.allclose(theirs, ours, rtol=0.1)
    part, own = network(images, whole)[:, 0, :32], begun.backbone(images, half)[:, 0]
    assert not torch.allclose(part @ part.T, own @ own.T, rtol=0.1)
    weights = Path(run.recipe.start) / "teacher.safetensors"
    before = weights.read_bytes()
    publish(tmp_path / "source", {n: 2 * t for n, t in tensors.items()}, recipe, 7)
    basis.write(run)  # of the source as it is now
    after = weights.read_bytes()
    assert after != before
    run.folder.mkdir(parents=True)
    shutil.rmtree(tmp_path / "source")
    basis.write(run)  # the run has begun with it: it stays
    assert weights.read_bytes() == after


def test_a_start_that_is_no_run_fails_alone(tmp_path: Path, settings, written, capsys) -> None:
    read = table.read(written(f"{TINY}  moved: {{start: {tmp_path}/nowhere, rebase: rotate}}\n"))
    given = settings(read, seeds=(0,), variants=("moved",))
    given.out.mkdir(parents=True, exist_ok=True)
    runner.run(lambda: plan(read, given), given.out)
    assert "the others go on" in capsys.readouterr().out
    assert "nowhere" in runner.outcomes(given.out)["moved_s0"].why


@pytest.mark.parametrize("recipe", ["photos", "photos_dspnet", "photos_sweet"])
def test_in_a_slow_start_one_student_costs_what_it_costs_alone(recipe: str) -> None:
    def flops(*overrides: str) -> float:
        return cost.flops_per_step(load.recipe(Path(recipe), overrides))

    alone, together = flops("objective.method=single"), flops()
    assert alone < together
    assert flops("objective.slow_start=0.25") == pytest.approx(0.25 * alone + 0.75 * together)


def test_equal_flops_give_all_runs_of_a_variant_what_the_first_has_alone(settings) -> None:
    """By counts of their own: steps times the operations of one, from another recipe's text."""
    read = table.read("methods")
    found = plan(
        read, settings(read, equal="flops", seeds=(0,), variants=("poa", "alone", "dspnet"))
    )
    totals = {name: sum(r.flops() for r in found if r.variant == name) for name in ("poa", "alone")}
    one_step_each_epoch = sum(
        r.recipe.schedule.epochs * r.flops() / r.steps for r in found if r.variant == "alone"
    )
    assert abs(totals["alone"] - totals["poa"]) <= one_step_each_epoch / 2
    steps = {run.variant: run.steps for run in found}
    assert steps["poa"] == 100 and steps["alone"] < 100 and steps["dspnet"] < 100


def test_runs_that_would_see_other_images_or_have_unknown_flops_are_refused(
    settings, written
) -> None:
    twice = TINY + "  twice: {set: [batch.images_per_slot=8]}\n"
    read = table.read(written(twice))
    with pytest.raises(UsageError, match=r"do not see as many.* twice_s0 1,600"):
        plan(read, settings(read))
    read = table.read("methods")
    read = replace(read, head=replace(read.head, against="seed"))
    with pytest.raises(UsageError, match="seed has a teacher or a start"):
        plan(read, settings(read, equal="flops"))


def test_a_variant_that_no_run_can_have_is_named(settings, written) -> None:
    read = table.read(written(TINY.replace("depth.max=2", "depth.max=1")))
    with pytest.raises(UsageError, match=r"variant poa: .*backbone\.depth"):
        plan(read, settings(read))
    with pytest.raises(UserError, match="poa-ds shard photos"):
        main_of = ["--table", written(TINY), "--data", "/no/such", "--dry-run"]
        _called(main_of)


def _called(words: list[str]) -> None:
    from argparse import ArgumentParser

    from poa_ds.bench.methods import command

    parser = ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args(words))


def _result(variant: str, seed: int, **knn: float) -> Result:
    found = {size.removeprefix("w"): value for size, value in knn.items()}
    return Result(variant, seed, found, {}, 1, 64, 1e12, 60.0, whole=True)


def test_differences_are_of_the_seeds_that_both_have() -> None:
    """By hand: seed 2 of the second does not count, the order of the seeds neither."""
    found = [_result("a", 0, w32x2=70.0), _result("a", 1, w32x2=74.0)]
    found += [_result("b", 1, w32x2=75.0), _result("b", 0, w32x2=71.5), _result("b", 2, w32x2=0.0)]
    difference = report.difference(found, "b", "a", "32x2")
    assert sorted(difference.values) == [1.0, 1.5]
    assert abs(difference.error - 12.7062 * 0.25) < 1e-3 and difference.verdict == "not shown"
    assert report.difference(found, "b", "a", "64x2") is None


def test_a_mean_is_of_those_that_have_every_size() -> None:
    """The narrow one lacks the better size, and is no worse for it."""
    found = [_result("a", s, w32x2=70.0, w64x2=80.0) for s in (0, 1)]
    found += [_result("b", s, w32x2=70.0) for s in (0, 1)]
    assert report.accuracy(found, "a", report.ALL).mean == 75.0
    assert report.accuracy(found, "b", report.ALL) is None
    assert report.difference(found, "b", "a", report.ALL) is None


def test_what_was_measured_before_the_first_step_stands_apart(written) -> None:
    read = table.read(written(TINY))
    found = [_result("poa", 0, w32x2=70.0, w64x2=80.0), _result("alone", 0, w32x2=60.0, w64x2=62.0)]
    found = [replace(r, protocol=PROTOCOL) for r in found]
    run = SimpleNamespace(name="poa_s0", variant="poa", done=True)
    run.recipe = SimpleNamespace(evaluation=SimpleNamespace(report_k=20))
    assert "first step" not in report.text(read, [run], found, {}, "command")
    found[0] = replace(found[0], before={"32x2": 51.0, "64x2": 53.0})
    text = report.text(read, [run], found, {}, "command")
    _, _, part = text.partition("Before the first step.")
    assert part.split("What one")[0].strip().endswith("| **poa** | 0 | 51.0 | 53.0 | 52.0 |")
    kept = report.record(read, [run], found)["variants"]["poa"]
    assert kept["before"]["64x2"]["mean"] == 53.0 and kept["k-NN"]["64x2"]["mean"] == 80.0


def test_a_variant_without_finite_features_does_not_stop_the_table(monkeypatch) -> None:
    nothing = _result("a", 0)
    some = replace(_result("b", 0, w32x2=70.0), protocol={"k": [20]})
    made = iter([nothing, some])
    monkeypatch.setattr(results, "_result", lambda done, whole: next(made))
    run = SimpleNamespace(done=True, seed=0)
    runs = [SimpleNamespace(**vars(run), variant=name) for name in "ab"]
    assert results.read(runs) == [nothing, some]


def _started(words: list[str], out: Path) -> subprocess.Popen:
    """The program, as soon as its first training has done a step."""
    child = subprocess.Popen(
        [sys.executable, "-m", "poa_ds.cli", *words],
        cwd=ROOT,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        stdout=subprocess.DEVNULL,
    )
    log = out / "logs" / "poa_s5.log"
    while child.poll() is None and not (log.exists() and "step 10:" in log.read_text()):
        time.sleep(0.05)
    return child


@pytest.mark.slow
def test_after_a_kill_the_same_command_goes_on_and_a_failure_stops_no_other(
    tmp_path: Path, written, capsys: pytest.CaptureFixture
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make_shards(data / "train", 48)
    make_shards(data / "val", 24, first=48)
    words = ["bench", "methods", "--table", written(TINY), "--seeds", "5", "--data", str(data)]
    words += ["--steps", "40", "--out", str(out)]
    child = _started(words, out)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    first = out / "runs" / "poa_s5"
    while not exit_status.read(first):  # it hears of the kill, and saves
        time.sleep(0.1)
    while RunFolder(first).path.joinpath("lock.json").exists():
        time.sleep(0.1)
    assert main(words) == 1  # one is missing at the end
    said = capsys.readouterr().out
    assert "broken_s5 failed: " in said and "/no/such/folder" in said
    assert re.search(r", torch [^;]+ \(load \d+ to \d+ when a run ended\); \d{4}-", said)
    found = json.loads((out / "table.json").read_text())
    assert found["missing"] == ["broken_s5"]
    for name, count in (("poa", 1), ("alone", 2)):
        [seed] = found["variants"][name]["seeds"]
        assert set(seed["knn"]) == {"32x2", "64x2"} and seed["runs"] == count and seed["whole"]
        assert seed["images"] == 40 * 8 * count and seed["seconds"] > 0 and seed["flops"] > 0
    poa, alone = (found["variants"][name]["seeds"][0]["knn"] for name in ("poa", "alone"))
    gap = found["variants"]["alone"]["difference"]["32x2"]
    assert gap["mean"] == pytest.approx(alone["32x2"] - poa["32x2"]) and gap["error"] is None
    assert main([*words, "--only", "poa", "alone"]) == 0  # nothing is left to be done
    assert "steps" not in capsys.readouterr().out.partition("#")[0]
    with pytest.raises(UserError, match="another recipe"):
        runs_again = [*words[2:], "--only", "poa"]
        _called([w if w != "40" else "50" for w in runs_again])

"""The plain step that ours is measured against computes the same, and `bench step` says what is so.

Ours is held to the published numbers elsewhere (test_poa.py, test_stages.py).
"""

import argparse
import copy
import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from poa_ds.bench import step as bench
from poa_ds.bench.contenders import Contender, Job, OneSize, ProcessMemory, Sample
from poa_ds.bench.report import Machine, Report, Result
from poa_ds.bench.three_passes.step import ThreePasses
from poa_ds.cli import main
from poa_ds.data.store.order import DROP_PATH, keyed
from poa_ds.methods import targets
from poa_ds.methods.method import method
from poa_ds.methods.terms import slot_terms
from poa_ds.model.space import Subnet
from poa_ds.recipe import ds_json, load
from poa_ds.system.errors import UsageError, UserError
from tests.support.teachers import make_teacher

TINY = {
    "precision": "fp32",
    "backbone": {
        "width": {"min": 16, "max": 48, "step": 16},
        "depth": {"min": 2, "max": 4, "step": 1},
        "patch_size": 8,
        "head_dim": 16,
        "layer_scale": 1.0,
        "drop_path": 0.0,
        "init": "torch",
    },
    "heads": {"prototypes": [16, 24], "hidden": 32, "bottleneck": 16, "init": "xavier"},
    "crops": {"global_size": 32, "local_count": 3, "local_size": 16},
    "batch": {"slots": 2, "images_per_slot": 6},
    "schedule": {"base_lr": 0.003, "lr_scaling": "none", "momentum": 0.9},
    "evaluation": {"crop": 32, "resize": 32},
}
VARIANTS = {
    "as it is": {},
    "subsets of the sequences": {"backbone": {"drop_path": 0.4}},
    "single sequences dropped": {"backbone": {"drop_path": 0.1}},
    "recomputed activations": {"backbone": {"activation_checkpointing": True}},
    "own heads for patches": {"heads": {"separate_ibot": True, "layers": 1}},
    "no local crops": {"crops": {"local_count": 0}},
    "no patches": {"objective": {"ibot": 0.0}},
    "another input scale": {"backbone": {"input_scale": 0.5}},
    "less imitation": {"objective": {"imitation": 0.3}},
}


def job(changes: dict | None = None, **fields: object) -> Job:
    tree = copy.deepcopy(TINY)
    for section, values in (changes or {}).items():
        tree.setdefault(section, {}).update(values)
    recipe = load.from_dict(tree)
    made = Job(recipe, ds_json.resolved(recipe, {}, 1), None, "cpu")
    return dataclasses.replace(made, **fields)


def ours(work: Job) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step by terms.py, without an engine."""
    recipe, space, values = work.recipe, work.space, work.values()
    networks, batches = method(recipe).networks(), work.batches(0)
    teacher, ibot = networks.teacher, values.ibot_active
    slots = [targets.teach(teacher, b, space.intact, ibot=ibot) for b in batches]
    assignments = targets.balance(slots, values.teacher_temperature, iterations=3)
    losses = []
    for batch, target in zip(batches, assignments, strict=True):
        draw = space.draw(0, batch.slot, seed=0, slots=len(batches), policy=recipe.draws)
        rng = keyed(DROP_PATH, recipe.seed, 0, batch.slot)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        backbone, crops = networks.student.backbone, [batch.global_crops, batch.local_crops]
        packing = backbone.packing([c for c in crops if len(c)])
        rate, subnets = recipe.backbone.drop_path, (space.intact, draw)
        drop_path = backbone.draw_drop_path(packing, subnets, rate, generator, "cpu")
        objective = recipe.objective
        terms = slot_terms(
            networks.student,
            batch,
            target,
            subnets,
            ibot=values.ibot_active,
            temperature=objective.student_temperature,
            drop_path=drop_path,
        )
        weights = objective.intact_weight, 1 - objective.intact_weight
        losses.append(terms.total(weights, objective, imitation=objective.imitation))
    total = torch.stack(losses).mean()
    total.backward()
    return total.item(), {n: p.grad for n, p in networks.student.named_parameters()}


def plain(work: Job) -> tuple[float, dict[str, Tensor]]:
    weights = method(work.recipe).networks().student.state_dict()
    passes = ThreePasses(work.recipe, work.space, weights, "cpu")
    loss = passes.backward(work.batches(0), work.values())
    return loss.item(), {n: p.grad for n, p in passes.student.named_parameters()}


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_every_gradient_are_the_same(name: str) -> None:
    work = job(VARIANTS[name])
    (loss, gradients), (plain_loss, plain_gradients) = ours(work), plain(work)
    assert abs(loss / plain_loss - 1) < 1e-6
    assert gradients.keys() == plain_gradients.keys()
    for key, gradient in gradients.items():
        other = plain_gradients[key]
        if gradient is None or other is None:  # heads or blocks that this step does not use
            assert gradient is None or not gradient.any(), key
            assert other is None or not other.any(), key
        else:  # float32; random weights make some gradients sums that nearly cancel
            assert (gradient - other).norm() <= 1e-5 * other.norm() + 1e-8, key


OTHERS = {
    "swin": {
        "width": {"min": 16, "max": 32, "step": 8},
        "stages": [[1, 1], [1, 1], [2, 3], [1, 1]],
        "patch_size": 2,
        "head_dim": 8,
        "window": 3,
        "drop_path": 0.4,
    },
    "resnet": {
        "width": {"min": 8, "max": 16, "step": 4},
        "stages": [[1, 1], [1, 2], [1, 2], [1, 1]],
        "patch_size": 4,
        "norm_groups": 4,
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_the_other_backbones_one_pass_at_a_time_give_the_same_loss_and_gradients(kind: str) -> None:
    work = job()
    tree = copy.deepcopy(TINY) | {"backbone": {"name": kind} | OTHERS[kind]}
    work = dataclasses.replace(work, recipe=load.from_dict(tree))
    (loss, gradients), (plain_loss, plain_gradients) = ours(work), plain(work)
    assert abs(loss / plain_loss - 1) < 1e-6
    assert gradients.keys() == plain_gradients.keys()
    for key, gradient in gradients.items():
        other = plain_gradients[key]
        assert (gradient - other).norm() <= 2e-5 * other.norm() + 1e-7, key


def test_a_given_size_is_drawn_in_every_step() -> None:
    work = job(size=Subnet(32, 3))
    assert isinstance(work.space, OneSize)
    drawn = {
        work.space.draw(n, s, seed=0, slots=2, policy="balanced") for n in (0, 9) for s in (0, 1)
    }
    assert drawn == {Subnet(32, 3)}
    assert work.space.intact == Subnet(48, 4)
    assert ours(work)[0] != ours(job())[0]


def test_the_command_prints_records_and_agrees_after_updates_too(tmp_path: Path, capfd) -> None:
    recipe, record = tmp_path / "tiny.yaml", tmp_path / "bench.json"
    recipe.write_text(yaml.safe_dump(TINY))
    words = ["--config", recipe, "--steps", 2, "--warmup", 1, "--size", "32x3", "--json", record]
    words = [*map(str, words), "backbone.drop_path=0.3", "heads.separate_ibot=true"]
    assert main(["bench", "step", *words]) == 0
    printed = capfd.readouterr().out
    assert (
        "slots 2, images per slot 6, elastic size 32x3, fp32, LayerScale 1; 2 steps of each"
        in printed
    )
    assert "ours, ZeRO stage 0" in printed and "three passes / ours" in printed
    found = json.loads(record.read_text())
    first, second = found["results"]["ours"], found["results"]["three passes"]
    for mine, other in (
        *zip(first["warmup"], second["warmup"], strict=True),
        *zip(first["steps"], second["steps"], strict=True),
    ):
        # the first step's weights are equal; then Adam enlarges rounding where gradients are ~ 0
        assert abs(mine["loss"] / other["loss"] - 1) < 1e-5
        for module in ("backbone", "heads", "ibot_heads"):
            assert abs(mine["norms"][module] / other["norms"][module] - 1) < 1e-4
    losses = [sample["loss"] for sample in found["results"]["ours"]["steps"]]
    assert losses[0] != losses[1]
    for result in found["results"].values():
        assert result["memory"]["peak"] > result["memory"]["start"] > 0


@pytest.mark.slow  # the compiler takes a minute
def test_every_way_computes_the_same_step(tmp_path: Path, capfd) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    kinds = "three passes,plain,compiled"  # all, but for kernels in the interpreter
    words = ["--config", str(recipe), "--steps", "1", "--warmup", "1", "--against", kinds]
    assert main(["bench", "step", *words, "backbone.drop_path=0.3"]) == 0
    printed = capfd.readouterr().out
    for kind in ("three passes", "plain", "compiled"):
        assert f"{kind} / ours" in printed


@pytest.mark.slow  # two processes each
@pytest.mark.parametrize("name", ["dspnet", "dspnet byol", "seed"])
def test_steps_of_other_methods_are_measured(name: str, tmp_path: Path, capfd) -> None:
    name, _, loss = name.partition(" ")
    recipe, record = tmp_path / "tiny.yaml", tmp_path / "bench.json"
    recipe.write_text(yaml.safe_dump(TINY))
    words = ["--config", str(recipe), "--steps", "1", "--warmup", "1", "--json", str(record)]
    words += [f"objective.method={name}", "backbone.depth={min: 3, max: 3, step: 1}"]
    if loss:
        words += [f"objective.loss={loss}", "objective.ibot=0", "objective.koleo=0"]
    if name == "seed":
        words += [f"distill.teacher={make_teacher(tmp_path / 'run')}", "crops.local_count=0"]
        words += ["distill.queue=24", "distill.hidden=32", "--size", "32x3"]
    assert main(["bench", "step", *words]) == 0
    printed = capfd.readouterr().out
    sizes = {"dspnet": "sizes 48x3, 32x3, 16x3", "seed": "elastic size 32x3"}[name]
    assert f"images per slot 6, {sizes}, fp32" in printed and "plain / ours" in printed
    found = json.loads(record.read_text())
    assert (
        found["sizes"][0][0] == {"dspnet": ["48x3", "32x3", "16x3"], "seed": ["48x3", "32x3"]}[name]
    )
    assert all(floor["flops"] > 0 for floor in found["floors"])


def test_ctrl_c_does_not_reach_a_process_while_it_begins() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Contender("three passes", job()) as contender:
        os.kill(contender.process.pid, signal.SIGINT)
        assert contender.step(0).seconds > 0
    assert signal.getsignal(signal.SIGINT) is before


def test_the_end_of_a_process_is_said_with_its_status() -> None:
    with Contender("three passes", job()) as contender:
        assert contender.step(0).seconds > 0
        os.kill(contender.process.pid, signal.SIGKILL)  # as the kernel does when memory is short
        with pytest.raises(UserError, match=r"three passes.*status -9.*images_per_slot"):
            contender.step(1)


def sample(loss: float = 2.0, seconds: float = 1.0, norm: float = 4.0) -> Sample:
    return Sample(seconds, seconds / 2, loss, {"backbone": norm, "heads": 1.0})


def test_what_differs_is_refused() -> None:
    bench.compare(sample(2.0), sample(2.0001), "fp32")
    bench.compare(sample(2.0), sample(2.01), "bf16")
    with pytest.raises(UserError, match=r"loss 2 \(ours\) and 2\.001 "):
        bench.compare(sample(2.0), sample(2.001), "fp32")
    with pytest.raises(UserError, match="gradient norm of the backbone"):
        bench.compare(sample(norm=4.0), sample(norm=4.01), "fp32")
    with pytest.raises(UserError, match="loss nan"):
        bench.compare(sample(float("nan")), sample(2.0), "fp32")


def test_the_table_has_the_medians_and_the_ratio_of_equal_steps() -> None:
    memory = ProcessMemory(start=2**29, peak=2**30, free=2**31)
    assert memory.fits(1) and not memory.fits(2)
    times = [(1.0, 3.0), (2.0, 2.0), (4.0, 6.0)]  # ours, plain; their medians: 2 and 3
    results = [
        Result([sample(2.0)], [sample(seconds=pair[i]) for pair in times], memory) for i in (0, 1)
    ]
    here = Machine("abacus", 2, 1, "2.15", "0.19", 0.5, "2026-11-21")
    named = dict(zip(("ours", "three passes"), results, strict=True))
    report = Report("--config x.yaml", job(), here, named, in_turns=False)
    assert report.speed_ratio("three passes") == 1.5  # of 3, 1, 1.5
    lines = report.table().splitlines()
    assert "one after the other" in lines[1] and "elastic size as drawn" in lines[1]
    assert lines[2].startswith("abacus, cores 2, threads 1, load 0.5;")
    rows = {line[:20].strip(): line[20:].split() for line in lines[4:8]}
    assert rows["ours, ZeRO stage 0"] == "2000.0 1000.0 4000.0 1000.0 6 1.00 2.000000".split()
    assert rows["three passes"] == "3000.0 2000.0 6000.0 1500.0 4 1.00 2.000000".split()
    assert rows["three passes / ours"] == "1.50 1.50 1.00".split()


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(["--config", "ds_configs/photos.yaml", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["precision=fp16"], "precision fp16: bench step measures fp32 and bf16"),
        (["objective.centering=softmax"], "objective.centering softmax"),
        (["--size", "33x2"], "size '33x2' is not in the space"),
        (["--json", "no-such-folder/x.json"], "no-such-folder"),
        (["--against", "plain,eager"], "--against 'eager': allowed with .* three passes, plain"),
        (["objective.method=single", "--against", "three passes"], "with objective.method single"),
        (["objective.method=dspnet", "--size", "32x2"], "--size 32x2: dspnet draws no size"),
        (["objective.method=single", "--size", "32x2"], "--size 32x2: single draws no size"),
        (
            ["objective.method=seed", "crops.local_count=0", "distill.queue=1024"],
            "distill.teacher is empty: give",
        ),
        (["--deepspeed_config", "no-such.json"], "no-such.json"),
    ],
)
def test_wrong_use_is_said_before_anything_runs(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench.run(arguments(*words))


def test_a_launcher_of_several_processes_is_refused(monkeypatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="without a launcher"):
        bench.run(arguments())


@pytest.mark.slow  # two processes
def test_bf16_is_measured_at_a_layer_scale_of_1e_5(tmp_path: Path, capfd) -> None:
    """The recipe as it is; the first step compares without KoLeo, which reads bits alone that bf16
    rounds away, ours elsewhere."""
    changes = {"backbone": {"layer_scale": 1e-5, "init": "published"}, "batch": {"slots": 1}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(TINY | {k: TINY[k] | v for k, v in changes.items()}))
    record = tmp_path / "bench.json"
    words = ["--steps", "1", "--warmup", "1", "--json", str(record), "precision=bf16"]
    assert main(["bench", "step", "--config", str(recipe), *words]) == 0
    assert "LayerScale 1e-05" in capfd.readouterr().out
    ours = json.loads(record.read_text())["results"]["ours"]
    koleo = load.recipe(recipe).objective.koleo
    # KoLeo is about 10 in such a network
    assert ours["steps"][0]["loss"] - ours["warmup"][0]["loss"] > 2 * koleo


def test_low_precision_gets_a_stage_that_has_it() -> None:
    assert bench.prepare(arguments("precision=bf16")).ds_config["zero_optimization"]["stage"] == 2
    assert "zero_optimization" not in bench.prepare(arguments()).ds_config

"""What `poa-ds plan` counts agrees with real engines, steps and checkpoints; what it says is so."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch

from poa_ds.cli import main
from poa_ds.methods.method import method
from poa_ds.plan import command as plan
from poa_ds.plan import distillation, losses
from poa_ds.plan import report as plan_report
from poa_ds.plan import state as plan_state
from poa_ds.plan import step_time as plan_time
from poa_ds.plan.constants import GENERAL, GIB, GPUS
from poa_ds.plan.state import Layout
from poa_ds.plan.students import Students, fixed
from poa_ds.recipe import derived, ds_json, load
from poa_ds.recipe.tree import Recipe
from tests.distributed.programs.launch import launch
from tests.distributed.programs.worker import SLOTS, recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES

WEIGH = "tests.distributed.programs.weigh"
BUCKET = 1_000_000
WITHIN = 0.02  # of measured bytes of the state
SAVED_WITHIN = 0.15  # of measured bytes of the saved tensors, as the plan promises
CONFIGS = Path("ds_configs")
VIT_L = CONFIGS / "vit_l16_in1k.yaml"

SHAPES = {
    "subsets of the sequences": {},
    "all sequences": {"backbone__drop_path": 0.0},
    "wide, two heads": {
        "backbone__drop_path": 0.0,
        "backbone__width": {"min": 64, "max": 128, "step": 64},
        "heads__separate_ibot": True,
        "heads__layers": 2,
    },
    "heads of their own": {
        "backbone__drop_path": 0.0,
        "backbone__width": {"min": 32, "max": 64, "step": 32},
        "heads__elastic": "own",
    },
    "no local crops": {"crops__local_count": 0},
    "recomputed": {"backbone__activation_checkpointing": True},
    "one student": {"objective__method": "single"},
}
OTHERS = {kind: {"backbone": backbone} for kind, backbone in BACKBONES.items()}
OTHERS["half"] = {"precision": "bf16", "heads__hidden": 256}
OTHERS["half, nothing dropped"] = OTHERS["half"] | {"backbone__drop_path": 0.0}
OTHERS["half, sums too"] = OTHERS["half"] | {"backbone__residual": "precision"}
RARE = {
    "swin without stochastic depth": {
        "backbone": BACKBONES["swin"] | {"drop_path": 0.0, "window": 4}
    },
    # scores of no row, of the patches, of all rows are made part by part
    "large heads": {"heads__prototypes": [48, 130_000, 220_000], "heads__bottleneck": 4},
}


def layout(recipe: Recipe, stage: int, world: int) -> Layout:
    file = {"zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET}}
    if recipe.precision == "bf16" and stage == 1:
        file["data_types"] = {"grad_accum_dtype": "bf16"}
    resolved = ds_json.resolved(recipe, file, world)
    return Layout(stage, world, SLOTS // world, recipe.precision, resolved)


def measured(tmp_path: Path, world: int, stages: list[int], shapes: dict) -> dict:
    found = launch(WEIGH, world, tmp_path, recipes=shapes, stages=stages, bucket=BUCKET)
    assert len(found) == len(stages) * len(shapes)
    return found


def check_state(found: dict, shapes: dict, world: int) -> None:
    """Weights, gradients, optimizer, teacher, checkpoint and collectives within 2 %."""
    for key, record in found.items():
        name, stage = key.rsplit("/", 1)
        recipe = recipe_with(**shapes[name])
        network, cut = plan_state.network(recipe), layout(recipe, int(stage), world)
        counted = dataclasses.asdict(plan_state.of_rank(network, cut))
        for part, size in record["state"].items():
            assert counted[part] == pytest.approx(size, rel=WITHIN), (key, part)
        files = plan_state.checkpoint_bytes(network)
        assert files == pytest.approx(record["checkpoint"], rel=WITHIN), key
        if world > 1:
            carried = dataclasses.asdict(plan_state.traffic(network, cut))
            for kind, size in record["carried"].items():
                small = WITHIN * network.parameters  # norms, Sinkhorn's columns, agreements
                assert carried[kind] == pytest.approx(size, rel=WITHIN, abs=small), (key, kind)


def check_saved(found: dict, shapes: dict) -> list[float]:
    """Every slot's saved tensors; counted / measured of each."""
    ratios = []
    for key, record in found.items():
        recipe = recipe_with(**shapes[key.rsplit("/", 1)[0]])
        space = derived.space(recipe)
        always = fixed(recipe)
        assert always or len({saved["size"] for saved in record["saved"]}) > 1
        for saved in record["saved"]:
            subnets = always or (space.intact, space.parse(saved["size"]))
            masked = 0 if distillation.is_frozen(recipe) else saved["masked"]
            students = Students(recipe, subnets, masked)
            counted = students.saved()
            parts = counted.all_kept()
            if recipe.backbone.activation_checkpointing:
                parts = counted.recomputed()
                del parts["one block again"]  # appears in the backward pass
            total = sum(parts.values()) + sum(losses.saved(students).values())
            if distillation.is_frozen(recipe):
                total += 4 * distillation.queue(recipe)  # one for all slots
            assert total == pytest.approx(saved["bytes"], rel=SAVED_WITHIN), (key, saved)
            ratios.append(total / saved["bytes"])
    return ratios


def test_bytes_of_two_ranks_are_what_was_counted(tmp_path: Path) -> None:
    shapes = {"vit": {"heads__hidden": 256}}
    found = measured(tmp_path, 2, [1, 2, 3], shapes)
    check_state(found, shapes, world=2)
    check_saved(found, shapes)


def test_what_a_step_keeps_is_what_was_counted(tmp_path: Path) -> None:
    ratios = check_saved(measured(tmp_path, 1, [1], SHAPES), SHAPES)
    assert all(0.95 < ratio < 1.05 for ratio in ratios), ratios  # better than is promised


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", OTHERS)
def test_bytes_of_other_networks_are_what_was_counted(
    name: str, world: int, tmp_path: Path
) -> None:
    shapes = {name: OTHERS[name]}
    found = measured(tmp_path, world, [1, 2, 3], shapes)
    check_state(found, shapes, world)
    ratios = check_saved(found, shapes)
    assert all(0.95 < ratio < 1.05 for ratio in ratios), ratios  # as docs/howto/cluster.md says


@pytest.mark.slow
def test_what_a_step_of_rare_networks_keeps_is_what_was_counted(tmp_path: Path) -> None:
    ratios = check_saved(measured(tmp_path, 1, [1], RARE), RARE)
    assert all(0.95 < ratio < 1.05 for ratio in ratios), ratios


@pytest.mark.parametrize("name", ["vit_l16_in1k", "swin_b_in1k", "resnet152x2_in1k"])
def test_parameters_are_those_of_the_networks(name: str) -> None:
    recipe = load.recipe(CONFIGS / f"{name}.yaml")
    network, space = plan_state.network(recipe), derived.space(recipe)
    with torch.device("meta"):
        student = method(recipe).networks().student
    mask_token = student.backbone.embed.mask_token.numel()
    # two counts that know nothing of each other: formulas of shape.py, tensors
    intact = student.backbone.parameter_count(space.intact) + mask_token
    assert network.of("backbone") == intact
    assert network.parameters == intact + network.of("heads")


def arguments(*words: str | Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return parser.parse_args([*map(str, words)])


@pytest.fixture(scope="module")
def vit_l() -> plan.Plan:
    return plan.prepare(arguments("--config", VIT_L, "--nodes", "4", "--gpus", "8"))


def test_numbers_of_vit_l_agree_with_earlier_counts_and_the_published_run(vit_l: plan.Plan) -> None:
    work = plan_time.work(vit_l.recipe)
    # counted by hand, TFLOPs of products and of attention
    assert work.teacher / 1e12 == pytest.approx(11.90 + 0.38, rel=0.01)
    assert work.intact / 1e12 == pytest.approx(50.01 + 1.22, rel=0.01)
    # simulated earlier: mean cost, and the slowest of 8, 32 and 64 ranks
    assert vit_l.draws["per_slot"].mean == pytest.approx(0.297, abs=0.003)
    assert vit_l.draws["per_slot"].slowest == pytest.approx(0.77, abs=0.01)
    for world, slowest in ((8, 0.61), (64, 0.83)):
        recipe = load.recipe(VIT_L, [f"batch.slots={world}"])
        assert plan_time.draws(recipe, "per_slot", world).slowest == pytest.approx(
            slowest, abs=0.01
        )
    # counted earlier: 22.7 and 21.8 GiB of the two students' blocks, 3.2 of the residual stream
    kept = vit_l.parts.activations
    assert sum(kept.values()) / GIB == pytest.approx(22.7 + 21.8 + 3.2, rel=0.03)
    # the published code, which keeps scaled inputs and all scores too, took 77 GB of each GPU
    by_stage = {memory.stage: memory for memory in vit_l.memory}
    assert 0.75 < by_stage[2].total(by_stage[2].activations) / 77e9 < 1.0
    assert vit_l.derived.steps == 346 * 800


def test_policies_differ_in_waiting_alone(vit_l: plan.Plan) -> None:
    same, balanced, per_slot = (vit_l.draws[p] for p in ("same", "balanced", "per_slot"))
    assert same.slowest == same.mean
    assert balanced.slowest < balanced.mean + 0.05 < per_slot.slowest
    assert same.mean == pytest.approx(balanced.mean, abs=0.01)
    waited = [times.step.waiting for times in vit_l.times]
    elastic = plan_time.work(vit_l.recipe).elastic
    rate = vit_l.cluster.flops_per_second("bf16")
    expected = (balanced.slowest - balanced.mean) * elastic / rate
    assert waited == pytest.approx([expected] * len(waited))


def test_draws_of_a_rank_with_several_slots_wait_in_every_turn() -> None:
    recipe = load.recipe(VIT_L, ["batch.slots=4", "draws=per_slot"])
    space = derived.space(recipe)
    total = 0.0
    for step in range(plan_time.DRAWN_STEPS):  # 2 ranks: slots 0, 1 and 2, 3
        costs = [
            space.cost(space.draw(step, slot, seed=0, slots=4, policy="per_slot"))
            for slot in range(4)
        ]
        total += max(costs[0], costs[2]) + max(costs[1], costs[3])
    slowest = plan_time.draws(recipe, "per_slot", 2).slowest
    assert slowest == pytest.approx(total / (2 * plan_time.DRAWN_STEPS))


def test_communication_goes_at_the_slowest_link() -> None:
    one = plan_time.Cluster("a100-80g", 1, 8, 1600.0)
    share = GENERAL["link_share"].value
    assert one.bytes_per_second() == 300e9 * share
    assert dataclasses.replace(one, nodes=4).bytes_per_second() == 200e9 * share
    assert dataclasses.replace(one, nodes=4, network_gbps=100).bytes_per_second() == 12.5e9 * share
    # 8 ranks, 100 bytes: a ring all-reduce sends 2 x 7/8 of them, a gather 7/8
    assert plan_state.Traffic(100, 0, 0).sent(8) == 175
    assert plan_state.Traffic(0, 100, 100).sent(8) == 175


@pytest.mark.parametrize("name", ["photos", "swin_b_in1k", "resnet152x2_in1k"])
def test_every_backbone_has_a_readable_plan(name: str, capsys) -> None:
    words = [
        "--config",
        CONFIGS / f"{name}.yaml",
        "--nodes",
        1,
        "--gpus",
        2,
        "--gpu",
        "h200",
        "--images",
        5000,
    ]
    assert main(["plan", *map(str, words)]) == 0
    printed = capsys.readouterr().out
    assert "An estimate, not measured on this GPU" in printed
    assert max(map(len, printed.splitlines())) <= 100
    for said in ("counted", "estimated", "H200", "The fastest that fits", "5,000 (--images)"):
        assert said.lower() in printed.lower()


def test_the_record_has_the_same_numbers(vit_l: plan.Plan) -> None:
    record = json.loads(json.dumps(plan_report.record(vit_l)))
    printed = plan_report.text(vit_l)
    for memory in record["memory"]:
        parts = [*memory["state"].values(), memory["losses"], memory["activations"]]
        total = sum(parts) * (1 + GENERAL["fragments"].value) + memory["framework"]
        assert memory["total_kept"] == pytest.approx(total)
        assert f"{total / GIB:.2f}" in printed
    assert [m["fits_kept"] for m in record["memory"]] == [False, True, True, True]
    for times in record["step"]:
        assert 0 < times["total"] < times["like_published"]
        assert f"{1600 / times['total']:,.0f}" in printed
    assert sum(record["saved"]["activations"].values()) == record["memory"][2]["activations"]
    assert record["constants"]["memory"]["value"] == GPUS["a100-80g"].memory.value


def test_what_does_not_fit_and_what_is_too_slow_is_said(capsys) -> None:
    base = ["plan", "--config", str(VIT_L), "--nodes", "1", "--gpus", "8"]
    assert main([*base, "batch.images_per_slot=100"]) == 0
    printed = capsys.readouterr().out
    assert "over" in printed and "ZeRO 2 with activation checkpointing" in printed
    assert "ZeRO 1 is refused: ZeRO stage 1 would add up the 4 slots" in printed
    assert main([*base, "batch.images_per_slot=1000", "data.workers=0"]) == 0
    printed = capsys.readouterr().out
    assert "Nothing fits" in printed and "too few: data.workers=" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "3"], "start 1, 2, 4, 8, 16, 32 ranks.*--gpus 8: 1, 2, 4 nodes fit"),
        (["--gpus", "5"], "with --gpus 5: no number of nodes fits"),
        (["backbone.width.max=100"], "backbone.width"),
        (["--deepspeed_config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_the_training_would_refuse_is_refused(words: list[str], message: str, capsys) -> None:
    given = ["--config", str(VIT_L), "--nodes", "1", "--gpus", "8", *words]
    assert main(["plan", *given]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error, re.DOTALL), error


def test_what_is_not_averaged_has_no_teacher() -> None:
    recipe = recipe_with()
    network = plan_state.network(recipe)
    alone = dataclasses.replace(network, averages=(False,) * len(network.groups))
    whole = network.parameters * 4
    assert plan_state.checkpoint_bytes(network) - plan_state.checkpoint_bytes(alone) == whole
    for stage in (0, 1, 2, 3):
        cut = layout(recipe, stage, 1)
        with_teacher, without = (plan_state.of_rank(n, cut) for n in (network, alone))
        assert without.teacher == 0 < with_teacher.teacher
        kept = with_teacher.optimizer - without.optimizer
        assert kept == pytest.approx(whole, rel=WITHIN)


def test_a_plan_of_one_student_costs_less(vit_l: plan.Plan) -> None:
    words = ("--config", VIT_L, "--nodes", "4", "--gpus", "8", "objective.method=single")
    alone = plan.prepare(arguments(*words))
    assert alone.largest.subnets == (vit_l.largest.subnets[0],)
    assert alone.memory[2].activations < 0.55 * vit_l.memory[2].activations
    for one, both in zip(alone.times, vit_l.times, strict=True):
        assert one.step.elastic == one.step.waiting == 0
        assert one.step.intact == both.step.intact and one.step.heads < both.step.heads

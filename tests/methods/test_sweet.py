"""SWEET's idea as a method: at full ranks it is POA, and ranks and stages do not change it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from poa_ds.cli import main
from poa_ds.engine import optim
from poa_ds.engine.networks import Networks
from poa_ds.methods.method import Method, method
from poa_ds.model import shape as shapes
from poa_ds.plan.step_time import work
from poa_ds.recipe import continuing, derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.recipe.twin import twin
from poa_ds.system.errors import UsageError
from tests.distributed.programs.launch import launch
from tests.distributed.programs.worker import made_batch, recipe_with
from tests.model.tucker.test_template import slices_of
from tests.support.same_run import assert_same_run

WORKER = "tests.distributed.programs.worker"
FULL = [48, 64, 64]  # of 4 blocks with 12 slices, 64 channels


def tree(ranks: list[int], *, noise: float = 0.0, **more: object) -> dict:
    backbone = {"width": {"min": 32, "max": 64, "step": 16}, "patch_size": 8, "head_dim": 16}
    backbone |= {"depth": {"min": 2, "max": 4, "step": 1}, "layer_scale": 1.0, "init": "torch"}
    backbone |= {"name": "tucker", "drop_path": 0.2, "template": {"ranks": ranks, "noise": noise}}
    return {"backbone": backbone, "objective": {"method": "sweet"}} | more


def as_vit(recipe: Recipe) -> Recipe:
    plain = replace(recipe.backbone, name="vit", template=type(recipe.backbone.template)())
    return replace(recipe, backbone=plain, objective=replace(recipe.objective, method="poa"))


def whole(state: dict[str, Tensor], depth: int = 4) -> Tensor:
    """(12 depth, 64, 64): every matrix of a ViT's blocks."""
    blocks = (slices_of(state, f"backbone.blocks.{i}.", 16, 4) for i in range(depth))
    return torch.stack([part for block in blocks for part in block])


def templated(networks: Networks, vit: Networks) -> None:
    """Let the full-rank template hold what the ViT has; its scalers are identities and rest."""
    own, state = networks.student.state_dict(), vit.student.state_dict()
    own.update({name: tensor for name, tensor in state.items() if name in own})
    own["backbone.template.core"] = whole(state)
    for name in ("row_factor", "column_factor"):
        own[f"backbone.template.{name}"] = torch.eye(64)
    for i, rows in enumerate(torch.eye(48).split(12)):
        own[f"backbone.template.block_factors_{i}"] = rows
    networks.student.load_state_dict(own)
    networks.teacher.load_state_dict(own)
    for name, parameter in networks.student.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "factor" not in name)


def train(recipe: Recipe, own: Method, networks: Networks) -> list[float]:
    """Two steps of one slot, the teacher following; their totals."""
    options = replace(recipe.optimizer, layer_decay=1.0)
    optimizer = optim.for_student(
        networks.student, depth=4, options=options, average=networks.teacher
    )
    totals, state = [], {}
    for step in (9, 10):
        values, batch = derived.schedules(recipe, 10**6).at(step), made_batch(recipe, step, 0)
        [target], state = own.targets(networks, [batch], values, state)
        total, _ = own.loss(networks, batch, target, values)
        optimizer.zero_grad()
        total.backward()
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = 1e-3, 0.04 if group["decays"] else 0.0
        optimizer.ema_momentum = 0.9
        optimizer.step()
        for parameter, average in networks.averaged().values():
            average.data.copy_(optimizer.state[parameter]["ema"])
        totals.append(total.item())
    return totals


def test_at_full_ranks_two_steps_are_poas_to_the_bit() -> None:
    recipe = recipe_with(**tree(FULL))
    plain = as_vit(recipe)
    vit, made = method(plain).networks(), method(recipe).networks()
    templated(made, vit)
    assert train(recipe, method(recipe), made) == train(plain, method(plain), vit)
    for got, wanted in ((made.student, vit.student), (made.teacher, vit.teacher)):
        mine, theirs = got.state_dict(), wanted.state_dict()
        assert torch.equal(mine["backbone.template.core"], whole(theirs))
        for name, tensor in theirs.items():
            if name in mine:
                assert torch.equal(mine[name], tensor), name


def test_rates_decay_and_average_follow_the_names() -> None:
    networks = method(recipe_with(**tree([6, 8, 8]))).networks()
    names = [name for name in networks.trained() if ".template." in name]
    assert len(names) == 3 + 4 and set(names) <= set(networks.averaged())
    assert [name for name in names if optim.decays(name)] == ["backbone.template.core"]
    factors = [
        optim.lr_factor(name, depth=4, layer_decay=0.5, patch_embed_factor=1.0)
        for name in (*names, "backbone.blocks.1.mlp.fc1.bias")
    ]
    assert factors == [1, 1, 1, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 8]


def test_both_students_of_a_slot_see_the_same_noise_and_the_teacher_none() -> None:
    recipe = recipe_with(**tree([6, 8, 8], noise=0.3))
    own = method(recipe)
    networks, seen = own.networks(), []
    for branch in (networks.student, networks.teacher):
        branch.backbone.template.register_forward_pre_hook(
            lambda module, args: seen.append(args[0] if args else None)
        )
    values = derived.schedules(recipe, 10**6).at(9)
    batches = [made_batch(recipe, 9, slot) for slot in (0, 1)]
    targets, _ = own.targets(networks, batches, values, {})
    assert seen == [None, None]
    for batch, target in (*zip(batches, targets, strict=True), (batches[0], targets[0])):
        own.loss(networks, batch, target, values)
    one, other, again = seen[2:]  # one pass for both students of each slot
    assert torch.equal(one.rows, again.rows) and not torch.equal(one.rows, other.rows)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_two_ranks_are_one_process_in_every_stage(tmp_path: Path, noise: float) -> None:
    changed = tree([6, 24, 24], noise=noise)
    stages = [1, 2, 3] if noise == 0 else [3]
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], recipe=changed)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=stages, steps=[0, 3], recipe=changed)
    assert len({size for record in one for size in record["sizes"]}) > 2
    for records in two.values():
        assert_same_run(records, one)


@pytest.mark.slow
def test_four_ranks_with_a_size_each_are_one_process(tmp_path: Path) -> None:
    """Every rank enters other blocks, and under ZeRO-3 none waits for another."""
    changed = tree([6, 24, 24])
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], recipe=changed)["0"]
    four = launch(WORKER, 4, tmp_path / "four", stages=[1, 2, 3], steps=[0, 3], recipe=changed)
    assert any(len(set(record["sizes"])) > 1 for record in one)
    for records in four.values():
        assert_same_run(records, one)


@pytest.mark.slow
def test_a_run_continues_at_another_stage_on_other_ranks(tmp_path: Path) -> None:
    changed = tree([6, 24, 24])
    first = launch(WORKER, 2, tmp_path / "two", stages=[3], steps=[0, 2], save=4, recipe=changed)
    source = str(tmp_path / "two" / "stage3")
    later = launch(
        WORKER, 1, tmp_path / "one", stages=[0], steps=[2, 4], load=[source], recipe=changed
    )
    [records] = later.values()
    assert_same_run(records, first["3+"])


def test_what_contradicts_a_template_is_refused_with_a_remedy() -> None:
    for name in ("photos", "photos_swin", "photos_resnet"):
        kind = load.recipe(Path(name)).backbone.name
        with pytest.raises(UsageError, match=rf"backbone.name {kind}: sweet .*name=tucker"):
            load.recipe(Path(name), ["objective.method=sweet"])
        with pytest.raises(UsageError, match=rf"template is tucker's: {kind} owns its matrices"):
            load.recipe(Path(name), ["backbone.template.noise=0.1"])
    with pytest.raises(UsageError, match=r"template.ranks\[1\] 65 is above the full rank 64"):
        recipe_with(**tree([6, 65, 8]))
    with pytest.raises(UsageError, match=r"stages belongs to swin and resnet: tucker has"):
        load.recipe(Path("photos_sweet"), ["backbone.stages=[[1,1],[1,1],[1,1],[1,1]]"])


def test_a_run_keeps_its_ranks_and_may_change_its_noise() -> None:
    old = recipe_with(**tree([6, 8, 8]))
    new = recipe_with(**tree([6, 9, 8], noise=0.1))
    changes = {change.key: change.rule for change in continuing.changes(load.to_yaml(old), new)}
    assert changes["backbone.template.ranks"].kind == "must not"
    assert changes["backbone.template.noise"].counted == "losses"


def test_the_twin_of_a_size_owns_its_matrices() -> None:
    recipe = recipe_with(**tree([6, 8, 8], noise=0.1))
    alone = twin(recipe, derived.space(recipe).parse("48x3"))
    assert alone.backbone.name == "vit" and alone.objective.method == "single"


@pytest.mark.parametrize("name", ["photos_sweet", "cifar10_sweet", "sweet_vit_s16_in1k"])
def test_a_plan_counts_the_making_of_matrices(name: str, capsys: pytest.CaptureFixture) -> None:
    recipe = load.recipe(Path(name))
    shape, c = derived.shape(recipe), recipe.backbone.width.max
    first, rows, columns = shape.ranks
    count = 12 * recipe.backbone.depth.max
    assert (first, rows, columns) == (count // 2, c // 2, c // 2)
    makes = 2 * count * (first * rows * columns + c * rows * columns + c * c * columns)
    assert (
        shape.making() == makes and shapes.of(as_vit(recipe).backbone, 32, channels=3).making() == 0
    )
    counted, plain = work(recipe), work(as_vit(recipe))
    assert counted.teacher - plain.teacher == pytest.approx(makes)
    assert counted.intact - plain.intact == pytest.approx(3 * makes)
    assert main(["plan", "--config", name, "--nodes", "1", "--gpus", "1"]) == 0
    assert capsys.readouterr().out

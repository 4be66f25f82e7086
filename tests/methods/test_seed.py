"""SEED as a method: its queue, its teacher from a file, elastic students, one process and ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from poa_ds.checkpoint import deployed
from poa_ds.cli import main
from poa_ds.data.batch import Batch
from poa_ds.methods.method import method
from poa_ds.methods.seed import LOCAL_QUEUE, QUEUE, Seed
from poa_ds.model.projector import Straight
from poa_ds.recipe import derived
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError, UserError
from tests.distributed.programs.launch import launch
from tests.distributed.programs.worker import IMAGES, SLOTS, made_batch, recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES
from tests.methods.test_seed_loss import divergence
from tests.support.same_run import assert_same_run
from tests.support.teachers import make_teacher

WORKER = "tests.distributed.programs.worker"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


def changes(teacher: object, **more: object) -> dict:
    return {
        "objective": {"method": "seed", "ibot": 0, "koleo": 0},
        "distill": {"teacher": str(teacher), "queue": 48, "hidden": 64},
        "crops__local_count": 0,
    } | more


def values(recipe: Recipe, step: int) -> StepValues:
    return derived.schedules(recipe, 10**6).at(step)


def batches(recipe: Recipe, step: int) -> list[Batch]:
    return [made_batch(recipe, step, slot) for slot in range(SLOTS)]


def embedded(path: Path, images: Tensor, size: str = "48x3") -> Tensor:
    """By hand, from what the folder holds."""
    from poa_ds.checkpoint.deployed import load_teacher

    model, _, _ = load_teacher(path)
    return F.normalize(model(images, model.space.parse(size))[:, 0], dim=-1)


def test_the_queue_holds_the_last_first_crops_in_slot_order_and_none_of_its_own_step(
    teacher: Path,
) -> None:
    recipe = recipe_with(**changes(teacher))
    seed, state, entered = Seed(recipe), {}, []
    start = None
    for step in range(5):
        slots = batches(recipe, step)
        found, after = seed.targets(None, slots, values(recipe, step), state)
        before = after[QUEUE][:0] if start is None else state[QUEUE]
        start = found[0][0].queue if start is None else start
        for slot, (embeddings,) in zip(slots, found, strict=True):
            torch.testing.assert_close(embeddings.own, embedded(teacher, slot.global_crops))
            assert step == 0 or torch.equal(embeddings.queue, before)
        entered += [e.own[:IMAGES] for (e,) in found]
        state = after
    torch.testing.assert_close(start.norm(dim=1), torch.ones(48))
    assert torch.equal(state[QUEUE], torch.cat(entered)[-48:])


def test_a_straight_head_finds_a_student_that_is_its_teacher_where_it_is(teacher: Path) -> None:
    """It says what the teacher says; a smaller one what it is itself, with nothing behind that."""
    tree = changes(teacher)
    tree["distill"]["hidden"] = 0
    model, own, _ = deployed.load_teacher(teacher)
    recipe = replace(recipe_with(**tree), backbone=own.backbone)
    networks = method(recipe).networks()
    networks.backbone.load_state_dict(model.state_dict())
    images, space = torch.randn(4, 3, 32, 32), model.space
    rows = networks.backbone(images, space.intact)[:, 0]
    said = networks.student.projector(rows)
    torch.testing.assert_close(said, embedded(teacher, images))
    small = networks.backbone(images, space.smallest)[:, 0]
    said = networks.student.projector(small)
    torch.testing.assert_close(said[:, : small.shape[1]], F.normalize(small, dim=-1))
    assert not said[:, small.shape[1] :].any()
    both = networks.student.projector(small, rows)  # all sizes by one layer
    torch.testing.assert_close(both[: len(small)], said)
    narrow = Straight(24, 16)(rows[:, :24])
    torch.testing.assert_close(narrow, F.normalize(rows[:, :16], dim=-1))


@pytest.mark.parametrize(("of_teacher", "stays"), [(0.1, True), (0.01, False)])
def test_one_temperature_for_both_leaves_a_student_that_is_its_teacher_where_it_is(
    teacher: Path, of_teacher: float, stays: bool
) -> None:
    """The gradient of all its parameters is zero; of two temperatures it is not."""
    tree = changes(teacher, objective__intact_weight=1.0)
    tree["distill"] |= {"hidden": 0, "teacher_temperature": of_teacher, "student_temperature": 0.1}
    model, own, _ = deployed.load_teacher(teacher)
    recipe = replace(recipe_with(**tree), backbone=replace(own.backbone, drop_path=0.0))
    seed = method(recipe)
    networks, [batch, *_] = seed.networks(), batches(recipe, 2)
    networks.backbone.load_state_dict(model.state_dict())
    [target], _ = seed.targets(None, [batch], values(recipe, 2), {})
    total, _ = seed.loss(networks, batch, target, values(recipe, 2))
    total.backward()
    grads = [p.grad for p in networks.student.parameters() if p.grad is not None]
    most = max(grad.abs().max().item() for grad in grads)
    assert most < 1e-5 if stays else most > 1e-3


@pytest.mark.parametrize(
    ("imitation", "local", "patches"), [(0.0, 0, 0.0), (0.5, 0, 0.0), (0.5, 3, 0.3)]
)
def test_the_loss_is_that_of_a_slow_loop_over_students_and_rows(
    teacher: Path, imitation: float, local: int, patches: float
) -> None:
    tree = changes(teacher, crops__local_count=local)
    tree["distill"] |= {"imitation": imitation, "local": bool(local), "patches": patches}
    recipe = recipe_with(backbone__drop_path=0.0, **tree)
    seed = method(recipe)
    networks, [batch, *_] = seed.networks(), batches(recipe, 2)
    [kinds], _ = seed.targets(None, [batch], values(recipe, 2), {})
    target = [(own, e.queue) for e in kinds for own in e.own]  # row by row
    assert len(target) == (2 + local) * IMAGES
    total, terms = seed.loss(networks, batch, kinds, values(recipe, 2))
    said, places, t, s = [], [], 0.01, 0.2
    for subnet in seed.sizes(batch.step, batch.slot):
        crops = [batch.global_crops, batch.local_crops][: 1 + bool(local)]
        tokens = [networks.backbone(images, subnet) for images in crops]
        said.append(networks.student.projector(torch.cat([each[:, 0] for each in tokens])))
        places.append(tokens[0][:, 1:])
    found = []
    for z in said:
        rows = []
        for row, (own, queue) in zip(z, target, strict=True):
            neighbours = torch.cat((own[None], queue))
            p = torch.softmax(neighbours @ own / t, 0)
            rows.append(-(p * torch.log_softmax(neighbours @ row / s, 0)).sum())
        found.append(torch.stack(rows).mean())
    assert terms["intact_seed"] == pytest.approx(found[0].item(), rel=1e-5)
    assert terms["elastic_seed"] == pytest.approx(found[1].item(), rel=1e-5)
    wanted = 0.8 * found[0] + 0.2 * found[1]
    if imitation:
        copied = []
        for small, whole, (own, queue) in zip(said[1], said[0].detach(), target, strict=True):
            neighbours = torch.cat((own[None], queue))
            p = torch.softmax(neighbours @ whole / s, 0)
            copied.append(-(p * torch.log_softmax(neighbours @ small / s, 0)).sum())
        wanted = wanted + 0.2 * imitation * torch.stack(copied).mean()
    if patches:
        model, _, _ = deployed.load_teacher(teacher)
        theirs = model(batch.global_crops, model.space.intact)[:, 1:]
        apart = [divergence(own, theirs) for own in places]
        assert terms["elastic_patches"] == pytest.approx(apart[1].item(), rel=1e-4)
        wanted = wanted + patches * (0.8 * apart[0] + 0.2 * apart[1])
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)
    parameters = dict(networks.student.named_parameters())
    got = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    slow = torch.autograd.grad(wanted, list(parameters.values()), allow_unused=True)
    for name, a, b in zip(parameters, got, slow, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a - b).norm() <= 2e-5 * b.norm() + 1e-7, name


def test_local_crops_have_a_queue_of_the_first_of_each_image(teacher: Path) -> None:
    tree = changes(teacher, crops__local_count=3)
    tree["distill"]["local"] = True
    recipe = recipe_with(**tree)
    seed, state, entered = Seed(recipe), {}, []
    for step in range(4):
        slots = batches(recipe, step)
        found, state = seed.targets(None, slots, values(recipe, step), state)
        for slot, (whole, local) in zip(slots, found, strict=True):
            torch.testing.assert_close(local.own, embedded(teacher, slot.local_crops))
            assert len(local.own) == 3 * IMAGES and not torch.equal(whole.queue, local.queue)
            entered.append(local.own[:IMAGES])
    assert torch.equal(state[LOCAL_QUEUE], torch.cat(entered)[-48:])
    assert len(state[QUEUE]) == 48
    with pytest.raises(UsageError, match=r"distill.local true: crops.local_count is 0, give"):
        recipe_with(**tree | {"crops__local_count": 0})


def test_a_space_of_one_size_has_one_student(teacher: Path) -> None:
    one = {"width": {"min": 32, "max": 32, "step": 16}, "depth": {"min": 2, "max": 2, "step": 1}}
    one |= {"patch_size": 8, "head_dim": 16, "init": "torch"}
    seed = method(recipe_with(**changes(teacher, backbone=one)))
    assert [str(size) for size in seed.sizes(0, 0)] == ["32x2"]


def test_figures_are_of_the_teachers_neighbours(teacher: Path) -> None:
    recipe = recipe_with(**changes(teacher))
    seed = Seed(recipe)
    found, _ = seed.targets(None, batches(recipe, 0), values(recipe, 0), {})
    figures = seed.figures(found[0])
    assert 0 <= figures["health/neighbour_entropy"] < 0.05  # random neighbours are far away
    assert figures["health/own_nearest"] == 1


def test_another_teacher_than_at_the_beginning_is_refused(teacher: Path, tmp_path: Path) -> None:
    recipe = recipe_with(**changes(teacher))
    _, state = Seed(recipe).targets(None, batches(recipe, 0), values(recipe, 0), {})
    state = {name: tensor.clone() for name, tensor in state.items()}
    Seed(recipe).targets(None, batches(recipe, 1), values(recipe, 1), state)
    for other in (make_teacher(tmp_path / "other", seed=1), f"{teacher}:48x2"):
        changed = recipe_with(**changes(other))
        with pytest.raises(UserError, match="not the file that this run was begun with"):
            Seed(changed).targets(None, batches(changed, 1), values(changed, 1), state)


def test_the_teacher_is_in_no_network_and_learns_nothing(teacher: Path) -> None:
    recipe = recipe_with(**changes(teacher))
    seed = Seed(recipe)
    networks, state = seed.networks(), {}
    optimizer = torch.optim.SGD(networks.parameters(), lr=0.1)
    for step in range(3):
        slots = batches(recipe, step)
        targets, state = seed.targets(None, slots, values(recipe, step), state)
        for slot, target in zip(slots, targets, strict=True):
            seed.loss(networks, slot, target, values(recipe, step))[0].backward()
        optimizer.step()
    own = {p.data_ptr() for p in networks.parameters()}
    found, wanted = seed.embedder.network.state_dict(), seed.teacher.network().state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name]) and tensor.data_ptr() not in own, name
    assert not any(p.requires_grad for p in seed.embedder.network.parameters())
    assert networks.teacher is None and not networks.averaged()


@pytest.mark.parametrize("changed", ["config.json", "state_dict.safetensors"])
def test_an_extracted_teacher_is_its_weights_and_what_describes_them(
    changed: str, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    words = ["extract", str(teacher), "--size", "48x3", "--format", "state-dict"]
    assert main([*words, "--out", str(out)]) == 0
    recipe = recipe_with(**changes(out))
    _, state = Seed(recipe).targets(None, batches(recipe, 0), values(recipe, 0), {})
    file = out / changed
    if changed == "config.json":  # the same network that would see other pixels
        file.write_text(file.read_text().replace("0.485", "0.5"))
    else:
        save_file({name: 2 * t for name, t in load_file(file).items()}, file)
    state = {name: tensor.clone() for name, tensor in state.items()}  # as a checkpoint gives it
    with pytest.raises(UserError, match=r"or config.json beside it is not; give that one"):
        Seed(recipe).targets(None, batches(recipe, 1), values(recipe, 1), state)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}/none", "there is no folder"),
        ("{}/none:32x2", "there is no folder"),
        ("{}", "holds no teacher"),
        ("{}/run:64x2", "not in the space"),
    ],
)
def test_a_teacher_that_is_not_there_is_an_error(teacher: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        method(recipe_with(**changes(text.format(teacher.parent)))).networks()


def test_recipes_that_cannot_work_are_refused_with_a_remedy(teacher: Path) -> None:
    from poa_ds.recipe import checks

    with pytest.raises(UsageError, match=r"distill.queue 50 is not a multiple.*48 or 64 would be"):
        recipe_with(**changes(teacher, distill={"queue": 50}))
    with pytest.raises(UsageError, match=r"crops.local_count 3: seed .* write 0"):
        recipe_with(**changes(teacher, crops__local_count=3))
    with pytest.raises(UsageError, match=r"48 is more than half of the 90 .* distill.queue=32"):
        checks.check_images(recipe_with(**changes(teacher)), 90)
    checks.check_images(recipe_with(**changes(teacher)), 96)
    with pytest.raises(UsageError, match=r"distill.teacher is empty: give distill.teacher=RUN"):
        checks.check_places(recipe_with(**changes("")))


def test_two_ranks_are_one_process_and_a_resumed_run_is_the_same_to_the_bit(
    teacher: Path, tmp_path: Path
) -> None:
    """The teacher's file and its place in no parameter group: digests of what is saved."""
    import hashlib

    file = teacher / "teacher" / "step00000003" / "teacher.safetensors"
    before, tree = hashlib.sha256(file.read_bytes()).hexdigest(), changes(teacher)
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], save=5, recipe=tree)
    two = launch(WORKER, 2, tmp_path / "two", stages=[2], steps=[0, 3], save=5, recipe=tree)
    assert_same_run(two["2"], one["0"])
    for got, wanted in zip(two["2"] + two["2+"], one["0"] + one["0+"], strict=True):
        assert got["state"] == wanted["state"]  # the queue, bit for bit
    source = [str(tmp_path / "two" / "stage2")]
    again = launch(
        WORKER, 2, tmp_path / "again", stages=[2], steps=[3, 5], load=source, recipe=tree
    )
    assert [*again.values()] == [two["2+"]]
    stored = (tmp_path / "two" / "stage2" / "digests.json").read_text()
    assert "projector.first.weight|fp32" in stored and "|ema" not in stored
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [64, 0])
def test_every_stage_trains_it_alike(teacher: Path, tmp_path: Path, hidden: int) -> None:
    tree = changes(teacher)
    tree["distill"]["hidden"] = hidden
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 4], recipe=tree)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=[1, 2, 3], steps=[0, 4], recipe=tree)
    for records in two.values():
        assert_same_run(records, one)
        assert [r["state"] for r in records] == [r["state"] for r in one]


@pytest.mark.slow
def test_it_learns_in_bf16_under_every_stage(teacher: Path, tmp_path: Path) -> None:
    tree = changes(teacher, precision="bf16")
    got = launch(WORKER, 2, tmp_path, stages=[1, 2, 3], steps=[0, 8], recipe=tree)
    for records in got.values():
        losses = [r["terms"]["intact_seed"] for r in records]
        assert all(r["applied"] for r in records) and losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", BACKBONES)
def test_students_of_every_backbone_learn(kind: str, teacher: Path, tmp_path: Path) -> None:
    tree = changes(teacher, backbone=BACKBONES[kind])
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], recipe=tree)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=[3], steps=[0, 3], recipe=tree)["3"]
    assert_same_run(two, one)

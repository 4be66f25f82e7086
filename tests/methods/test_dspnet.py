"""DSPNet's idea as a method: against one size alone, against POA, and against itself on ranks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from poa_ds.cli import main
from poa_ds.data.batch import Batch
from poa_ds.methods.method import method
from poa_ds.methods.terms import slot_terms
from poa_ds.model.space import Subnet
from poa_ds.plan.step_time import draws
from poa_ds.plan.students import every_size
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from tests.distributed.programs.launch import launch
from tests.distributed.programs.worker import made_batch, recipe_with
from tests.methods.test_single import one_step
from tests.support.same_run import assert_same_run

WORKER = "tests.distributed.programs.worker"


def tree(*widths: int, depth: int = 3, **more: object) -> dict:
    backbone = {"widths": list(widths), "depth": {"min": depth, "max": depth, "step": 1}}
    backbone |= {"patch_size": 8, "head_dim": 16, "layer_scale": 1.0, "drop_path": 0.2}
    backbone |= {"init": "torch"}
    return {"backbone": backbone, "draws": "balanced", "objective": {"method": "dspnet"}} | more


def as_method(recipe: Recipe, name: str) -> Recipe:
    return replace(recipe, objective=replace(recipe.objective, method=name))


def assert_the_same(got: tuple[dict, dict], wanted: tuple[dict, dict]) -> None:
    """Terms and gradients to the bit."""
    for a, b in zip(got, wanted, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("weights", ["equal", "poa", "slimclr"])
def test_one_listed_size_is_one_size_alone(weights: str) -> None:
    recipe = recipe_with(**tree(64, slimmable={"weights": weights}))
    assert_the_same(one_step(recipe), one_step(as_method(recipe, "single")))


def test_one_listed_size_is_a_slow_loop_over_views_patches_and_heads_in_float64() -> None:
    objective = {"method": "dspnet", "koleo": 0.0, "dino": 0.7, "ibot": 1.3}
    recipe = recipe_with(**tree(64, backbone__drop_path=0.0) | {"objective": objective})
    own, batch = method(recipe), in_float64(made_batch(recipe, 9, 1))
    networks = own.networks().double()
    student = networks.student
    values = derived.schedules(recipe, 10**6).at(9)
    [target], _ = own.targets(networks, [batch], values, {})
    total, _ = own.loss(networks, batch, target, values)
    crops, masks = [batch.global_crops, batch.local_crops], [batch.masks, None]
    [whole, small] = student.backbone.streams(crops, own.sizes(9, 1), masks)[0]
    images, views, wanted = batch.size, 2 + recipe.crops.local_count, []
    for head, prototypes in enumerate(recipe.heads.prototypes):

        def said(token: Tensor, head: int = head) -> Tensor:
            row, w = student.heads(token[None])[head]
            return torch.log_softmax((row @ w.T)[0] / 0.1, 0)

        targets = target.targets(head)
        assert targets.global_cls.shape == (2, images, prototypes)
        dino, ibot, patch = [], [], 0
        for image in range(images):
            for view in range(views):
                tokens = (
                    whole[view * images + image] if view < 2 else small[(view - 2) * images + image]
                )
                dino += [
                    -(targets.global_cls[crop, image] * said(tokens[0])).sum()
                    for crop in range(2)
                    if crop != view
                ]
        for crop in range(2 * images):
            places = [p for p in range(batch.masks.shape[1]) if batch.masks[crop, p]]
            rows = []
            for place in places:
                rows.append(-(targets.patches[patch] * said(whole[crop, 1 + place])).sum())
                patch += 1
            ibot.append(torch.stack(rows).mean() if rows else torch.zeros(()))
        wanted.append(0.7 * torch.stack(dino).mean() + 1.3 * torch.stack(ibot).mean())
    slow = torch.stack(wanted).mean()
    torch.testing.assert_close(total, slow, rtol=1e-12, atol=0)
    assert_equal_gradients(student, total, slow)


@pytest.mark.parametrize("imitation", [1.0, 0.3, 0.0])
def test_two_sizes_with_poas_weights_are_poa_with_that_draw(imitation: float) -> None:
    recipe = recipe_with(**tree(32, 64, slimmable={"weights": "poa", "imitation": imitation}))
    poa = as_method(recipe, "poa")
    poa = replace(poa, objective=replace(poa.objective, imitation=imitation))
    assert method(poa).sizes(0, 0) == method(recipe).sizes(0, 0)
    assert_the_same(one_step(recipe), one_step(poa))


@pytest.mark.parametrize(("name", "key"), [("dspnet", "slimmable"), ("seed", "distill")])
def test_a_method_whose_imitation_has_a_key_of_its_own_refuses_poas(name: str, key: str) -> None:
    said = rf"objective.imitation 0.5: of {name} it is {key}.imitation, remove"
    with pytest.raises(UsageError, match=said):
        load.recipe(Path(f"photos_{name}"), ["objective.imitation=0.5"])


def test_the_total_is_the_weighted_sum_of_each_size_alone_in_float64() -> None:
    recipe = recipe_with(**tree(32, 48, 64, backbone__drop_path=0.0, slimmable={"weights": "poa"}))
    own = method(recipe)
    networks, batch = own.networks().double(), in_float64(made_batch(recipe, 9, 1))
    values = derived.schedules(recipe, 10**6).at(9)
    [target], _ = own.targets(networks, [batch], values, {})
    total, _ = own.loss(networks, batch, target, values)
    options, wanted = recipe.objective, torch.zeros((), dtype=torch.float64)
    parameters = dict(networks.student.named_parameters())
    for weight, size in zip((0.8, 0.1, 0.1), own.sizes(9, 1), strict=True):
        alone = slot_terms(networks.student, batch, target, (size,), ibot=True, temperature=0.1)
        share = weight * (options.dino * alone.dino[0] + options.ibot * alone.ibot[0])
        share = share + options.koleo * alone.koleo / 3
        assert_nothing_beyond(size, share, parameters)
        wanted = wanted + share
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=0)
    assert_equal_gradients(networks.student, total, wanted)


def in_float64(made: Batch) -> Batch:
    crops = made.global_crops.double(), made.local_crops.double()
    batch = type(made).of(*crops, made.masks, step=made.step, slot=made.slot)
    counts = made.masks.sum(1, keepdim=True).double().expand_as(made.masks)
    return replace(batch, mask_weights=1 / counts[made.masks])


def assert_equal_gradients(student: torch.nn.Module, one: Tensor, other: Tensor) -> None:
    parameters = dict(student.named_parameters())
    names, tensors = list(parameters), list(parameters.values())
    got, wanted = (torch.autograd.grad(x, tensors, allow_unused=True) for x in (one, other))
    for name, a, b in zip(names, got, wanted, strict=True):
        if b is not None:
            apart = (a - b).norm() / b.norm().clamp_min(1e-30)
            # positions are resized in float32
            assert apart < (1e-8 if name.endswith("pos_embed") else 1e-11), (name, apart)


def assert_nothing_beyond(size: Subnet, share: Tensor, parameters: dict[str, Tensor]) -> None:
    """The gradient of a size is exactly zero beyond its slice."""
    weight = parameters["backbone.blocks.0.mlp.fc1.weight"]
    [gradient] = torch.autograd.grad(share, [weight], retain_graph=True)
    hidden = 4 * size.width
    assert gradient[:hidden, : size.width].abs().sum() > 0
    assert not gradient[hidden:].any() and not gradient[:, size.width :].any()


def test_at_a_slow_start_the_whole_network_learns_alone() -> None:
    started = recipe_with(**tree(32, 48, 64, objective={"method": "dspnet", "slow_start": 0.5}))
    images = 10**6  # 20 steps
    at = derived.schedules(started, images).at
    assert [at(step).all_sizes for step in (0, 9, 10, 19)] == [False, False, True, True]
    assert "smaller sizes at step 10" in derived.describe(started, images)
    wanted = one_step(as_method(started, "single"))  # step 9
    assert_the_same(one_step(started), wanted)
    at_once = recipe_with(**tree(32, 48, 64))
    assert one_step(at_once)[0].keys() > wanted[0].keys()
    with pytest.raises(UsageError, match=r"objective.slow_start"):
        recipe_with(**tree(32, 64, objective={"method": "dspnet", "slow_start": 1.0}))


@pytest.mark.parametrize("name", ["poa", "sweet"])
def test_a_slow_start_of_two_students_is_one_alone(name: str) -> None:
    changed = tree(64, objective={"method": name, "slow_start": 0.5})
    del changed["backbone"]["widths"]
    changed["backbone"]["width"] = {"min": 32, "max": 64, "step": 16}
    if name == "sweet":
        changed["backbone"]["name"] = "tucker"
    started = recipe_with(**changed)
    assert_the_same(one_step(started), one_step(as_method(started, "single")))
    at_once = replace(started, objective=replace(started.objective, slow_start=0.0))
    assert "elastic_dino" in one_step(at_once)[0]


@pytest.mark.parametrize("name", ["single", "seed"])
def test_a_method_in_which_no_student_waits_has_no_slow_start(name: str) -> None:
    with pytest.raises(UsageError, match=rf"objective.slow_start 0.5: {name} has no smaller"):
        load.recipe(Path("photos"), [f"objective.method={name}", "objective.slow_start=0.5"])


def test_what_a_run_says_of_its_sizes_and_evaluations_follows_its_method() -> None:
    recipe = recipe_with(**tree(32, 64, evaluation={"queries": "val", "resize": 32, "crop": 32}))
    assert "2 from 32x3 to 64x3, all in every step" in derived.describe(recipe, 1000)
    alone = as_method(recipe, "single")
    assert "the largest alone" in derived.describe(alone, 1000)
    joint, one = (derived.of(r, 1000).evaluation_share for r in (recipe, alone))
    views, whole = 2 * 32**2 + 3 * 16**2, 2 * 32**2  # pixels of the students, of the teacher
    cost = derived.space(recipe).cost(Subnet(32, 3))
    assert one / joint == pytest.approx((whole + 3 * (1 + cost) * views) / (whole + 3 * views))


def test_weights_by_hand() -> None:
    def weights(name: str) -> tuple[float, ...]:
        found = method(recipe_with(**tree(16, 32, 48, 64, slimmable={"weights": name}))).weights
        assert sum(found) == pytest.approx(1)
        return found

    assert weights("equal") == (0.25,) * 4
    assert weights("poa") == pytest.approx((0.8, *[0.2 / 3] * 3))
    assert weights("slimclr") == pytest.approx([x / 5.5 for x in (2.5, 1, 1, 1)])


def test_the_order_of_the_list_changes_nothing() -> None:
    one, other = (recipe_with(**tree(*widths)) for widths in ((32, 48, 64), (64, 32, 48)))
    assert method(one).sizes(0, 0) == method(other).sizes(0, 0)
    assert derived.space(one) == derived.space(other)
    assert_the_same(one_step(one), one_step(other))


def test_what_contradicts_a_list_is_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match=r"draws per_slot: dspnet trains all .* remove draws"):
        recipe_with(**tree(32, 64) | {"draws": "per_slot"})
    with pytest.raises(UsageError, match=r"backbone.width and backbone.widths \[32\]: give one"):
        load.recipe(Path("photos"), ["backbone.widths=[32]"])
    with pytest.raises(UsageError, match=r"backbone.width 40 is not a multiple"):
        recipe_with(**tree(32, 40))
    kept = load.to_yaml(recipe_with(**tree(32, 64)))
    assert "widths:" in kept  # and a run's own recipe is read again
    assert load.from_dict(load.parse(kept, source="")) == recipe_with(**tree(32, 64))


def test_a_plan_counts_all_students(capsys: pytest.CaptureFixture) -> None:
    recipe = load.recipe(Path("dspnet_vit_b16_in1k"))
    [students] = every_size(recipe)
    assert [size.width for size in students.subnets] == [768, 576, 384, 192]
    cost = draws(recipe, "balanced", 8)
    assert 3 * cost.mean == pytest.approx(0.875) and cost.slowest == cost.mean
    words = ["plan", "--config", "dspnet_vit_b16_in1k", "--nodes", "1", "--gpus", "8"]
    assert main(words) == 0 and "768x12" in capsys.readouterr().out


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    objective = {"method": "dspnet", "slow_start": 0.05}  # the first of 20 steps
    changed = tree(32, 48, 64, objective=objective)
    one = launch(WORKER, 1, tmp_path / "one", stages=[0], steps=[0, 3], recipe=changed)["0"]
    two = launch(WORKER, 2, tmp_path / "two", stages=[2, 3], steps=[0, 3], recipe=changed)
    assert [("elastic_dino" in r["terms"]) for r in one] == [False, True, True]
    for records in two.values():
        assert_same_run(records, one)


def test_a_range_that_runs_backwards_is_still_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"backbone.width.max 16 is below backbone.width.min 32"):
        load.recipe(Path("photos"), ["backbone.width.max=16"])
    for recipe in ("photos_swin", "photos_resnet"):
        with pytest.raises(UsageError, match=r"backbone.width.max 8 is below"):
            load.recipe(Path(recipe), ["backbone.width.max=8"])

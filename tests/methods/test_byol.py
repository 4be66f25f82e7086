"""BYOL's comparison: against a slow loop over pairs of views, by hand, and other methods."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.cli import main
from poa_ds.data.batch import Batch
from poa_ds.methods.byol import apart
from poa_ds.methods.method import method
from poa_ds.model.space import Subnet
from poa_ds.plan import byol
from poa_ds.plan.students import Students, fixed
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.recipe.twin import twin
from poa_ds.system.errors import UsageError
from tests.distributed.programs.worker import made_batch, recipe_with
from tests.methods.test_dspnet import (
    as_method,
    assert_equal_gradients,
    assert_nothing_beyond,
    assert_the_same,
    in_float64,
    tree,
)
from tests.methods.test_single import one_step


def byol_tree(*widths: int, **more: object) -> dict:
    objective = {"method": "dspnet", "loss": "byol", "ibot": 0, "koleo": 0}
    return tree(*widths, **more) | {"objective": objective}


def of_one_slot(recipe: Recipe, batch: Batch) -> tuple[nn.Module, object, Tensor, dict]:
    """(networks in float64, target, total, terms); student and teacher differ."""
    own = method(recipe)
    networks = own.networks().double()
    with torch.no_grad():
        for number, p in enumerate(networks.student.parameters()):
            p.add_(0.05 * torch.sin(torch.arange(p.numel(), dtype=p.dtype) + number).view_as(p))
    values = derived.schedules(recipe, 10**6).at(9)
    [target], _ = own.targets(networks, [batch], values, {})
    return networks, target, *own.loss(networks, batch, target, values)


def head(mlp: nn.Module, row: Tensor) -> Tensor:
    """Of one row, as wide as the first layer, by hand."""
    x = mlp.first.weight @ row + mlp.first.bias
    for norm, layer in zip(mlp.norms, mlp.rest, strict=True):
        x = (x - x.mean()) / (x.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias
        x = layer.weight @ x.clamp(min=0) + layer.bias
    return x


def test_the_total_is_a_slow_loop_over_students_images_and_pairs_in_float64() -> None:
    options = {"imitation": 0.7, "weights": "slimclr"}
    recipe = recipe_with(**byol_tree(32, 64, backbone__drop_path=0.0, slimmable=options))
    batch = in_float64(made_batch(recipe, 9, 1))
    networks, target, total, terms = of_one_slot(recipe, batch)
    student, teacher = networks.student, networks.teacher
    images, views = batch.size, 2 + recipe.crops.local_count

    def crop(view: int, image: int) -> Tensor:
        crops, place = (batch.global_crops, view) if view < 2 else (batch.local_crops, view - 2)
        return crops[None, place * images + image]

    def projected(view: int, image: int) -> Tensor:
        feature = teacher.backbone(crop(view, image), networks.backbone.space.intact)[0, 0]
        return F.normalize(head(teacher.projector, feature), dim=0).detach()

    z = [[projected(view, image) for image in range(images)] for view in range(2)]
    for view in range(2):
        torch.testing.assert_close(target.views[view], torch.stack(z[view]), rtol=0, atol=1e-12)
    q = []
    for size in method(recipe).sizes(9, 1):
        alpha = 64 / size.width
        q.append([])
        for view in range(views):
            features = [
                student.backbone(crop(view, image), size)[0, 0] * alpha for image in range(images)
            ]
            rows = [F.pad(feature, (0, 64 - size.width)) for feature in features]
            q[-1].append([head(student.predictor, head(student.projector, x)) for x in rows])

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return 2 - 2 * (a / a.norm()) @ (b / b.norm())

    towards, copied = [], []
    for k in range(2):
        pairs = [(v, c, i) for v in range(views) for c in range(2) for i in range(images) if v != c]
        assert len(pairs) == images * (2 + 2 * recipe.crops.local_count)
        towards.append(torch.stack([distance(q[k][v][i], z[c][i]) for v, c, i in pairs]).mean())
        same = [distance(q[k][v][i], q[0][v][i].detach()) for v in range(views) for i in range(4)]
        copied.append(torch.stack(same).mean())
    weights = torch.tensor((1.5, 1.0), dtype=torch.float64) / 2.5
    wanted = weights[0] * towards[0] + weights[1] * (towards[1] + 0.7 * copied[1])
    torch.testing.assert_close(total, wanted, rtol=1e-12, atol=0)
    assert terms.keys() == {"intact_byol", "elastic_byol", "imitation"}
    torch.testing.assert_close(terms["imitation"], copied[1].detach(), rtol=1e-10, atol=0)
    small = method(recipe).sizes(9, 1)[1]
    assert_nothing_beyond(small, towards[1], dict(student.named_parameters()))
    assert_equal_gradients(student, total, wanted)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_ends_and_a_case_by_hand() -> None:
    torch.manual_seed(0)
    z = F.normalize(torch.randn(3, 5, dtype=torch.float64), dim=-1)
    both = torch.stack((z, z))
    many = z.expand(6, 3, 5)
    assert apart(many, both).item() == pytest.approx(0, abs=1e-15)
    assert apart(-many, both).item() == pytest.approx(4, abs=1e-15)
    # one image in the plane: the teacher at 0 and 90 degrees, the student at 30, 60 and (local) 180
    degrees = {name: math.radians(x) for name, x in (("a", 30), ("b", 60), ("c", 180))}
    q = torch.tensor([[[math.cos(x), math.sin(x)]] for x in degrees.values()], dtype=torch.float64)
    z = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    # 30 to 90, 60 to 0, 180 to 0 and to 90
    wanted = sum(2 - 2 * math.cos(math.radians(x)) for x in (60, 60, 180, 90)) / 4
    assert apart(q, z).item() == pytest.approx(wanted, abs=1e-15)


def test_a_student_that_is_the_teacher_and_predicts_itself_has_no_loss() -> None:
    recipe = recipe_with(**byol_tree(64, backbone__drop_path=0.0, crops__local_count=0))
    made = made_batch(recipe, 9, 0)
    crops = made.global_crops[:4].repeat(2, 1, 1, 1)  # no augmentation
    batch = Batch.of(crops, made.local_crops, made.masks, step=9, slot=0)
    own = method(recipe)
    networks, values = own.networks(), derived.schedules(recipe, 10**6).at(9)
    networks.student.predictor = nn.Identity()
    [target], _ = own.targets(networks, [batch], values, {})
    total, _ = own.loss(networks, batch, target, values)
    assert total.item() == pytest.approx(0, abs=1e-5)
    named = {name for name, _ in networks.teacher.named_parameters()}
    assert named == own.networks().averaged().keys() and not any("predictor" in n for n in named)


def test_no_image_depends_on_another() -> None:
    """Hence neither on slots nor on ranks."""
    recipe = recipe_with(**byol_tree(32, 64, backbone__drop_path=0.0))
    whole = in_float64(made_batch(recipe, 9, 0))
    totals = []
    for image in range(whole.size):
        crops = whole.global_crops[image :: whole.size], whole.local_crops[image :: whole.size]
        alone = Batch.of(*crops, whole.masks[image :: whole.size], step=9, slot=0)
        totals.append(of_one_slot(recipe, alone)[2])
    total = of_one_slot(recipe, whole)[2]
    torch.testing.assert_close(total, torch.stack(totals).mean(), rtol=1e-12, atol=0)


def test_one_size_is_single_and_two_are_poa_with_that_draw() -> None:
    one = recipe_with(**byol_tree(64))
    assert_the_same(one_step(one), one_step(as_method(one, "single")))
    options = {"weights": "poa", "imitation": 1.0}
    two = recipe_with(**byol_tree(32, 64, slimmable=options))
    assert_the_same(one_step(two), one_step(as_method(two, "poa")))


def test_the_twin_of_a_size_has_the_same_objective() -> None:
    recipe = recipe_with(**byol_tree(32, 64))
    found = twin(recipe, Subnet(32, 3))
    assert (found.objective.method, found.objective.loss) == ("single", "byol")
    assert found.heads == recipe.heads and derived.space(found).intact == Subnet(32, 3)


def test_what_has_no_part_is_refused_with_a_remedy() -> None:
    for key, value, said in (
        ("ibot", 1.0, r"objective.ibot 1: objective.loss byol has no such term, write .*ibot=0"),
        ("koleo", 0.1, r"objective.koleo 0.1: .* write objective.koleo=0"),
        ("dino", 0.5, r"objective.dino 0.5: .* remove it"),
        ("method", "seed", r"objective.loss byol: seed has a loss of its own, remove"),
    ):
        changed = byol_tree(32, 64)
        changed["objective"] = changed["objective"] | {key: value}
        with pytest.raises(UsageError, match=said):
            recipe_with(**changed)
    with pytest.raises(UsageError, match=r"heads.separate_ibot true: .* remove it"):
        recipe_with(**byol_tree(32, 64, heads__separate_ibot=True))
    said = derived.describe(recipe_with(**byol_tree(32, 64)), 1000)
    assert "teacher temp." not in said and "iBOT" not in said


def test_bench_step_does_not_hold_it_against_the_published_step(
    capsys: pytest.CaptureFixture,
) -> None:
    words = ["bench", "step", "--config", "photos", "--against", "three passes"]
    assert main([*words, "objective={loss: byol, ibot: 0, koleo: 0}"]) == 2
    assert "objective.koleo_students all are plain" in capsys.readouterr().err
    assert main([*words, "objective.koleo_students=intact"]) == 2
    assert "objective.koleo_students intact are plain" in capsys.readouterr().err


def test_figures_show_a_collapse() -> None:
    recipe = recipe_with(**byol_tree(32, 64))
    own = method(recipe)
    networks, batch = own.networks(), made_batch(recipe, 9, 0)
    values = derived.schedules(recipe, 10**6).at(9)
    [target], _ = own.targets(networks, [batch], values, {})
    figures = own.figures(target)
    assert all(x.isfinite() for x in figures.values())
    assert figures["health/projection_std"] > 0.2
    same = replace(target, views=target.views[:1, :1].expand_as(target.views).contiguous())
    assert own.figures(same)["health/projection_std"] < 1e-6


def test_a_plan_counts_its_heads(capsys: pytest.CaptureFixture) -> None:
    recipe = load.recipe(Path("photos_dspnet_byol"))
    students = Students(recipe, fixed(recipe), 0)
    c, h, d, views = 96, recipe.heads.hidden, recipe.heads.bottleneck, (2 + 4) * 32
    projector, predictor = c * h + h * h + h * d, 2 * h * d
    by_hand = 3 * 3 * views * (projector + predictor) + 2 * 32 * projector
    assert byol.flops(students) == 2 * by_hand
    narrow = 3 * views * h * ((96 - 64) + (96 - 32))  # columns that are not there
    assert byol.least_flops(students) == 2 * (by_hand - narrow)
    words = ["plan", "--config", "photos_dspnet_byol", "--nodes", "1", "--gpus", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "predictor" in printed and "Sinkhorn and cross" not in printed

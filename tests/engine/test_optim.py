"""The optimizer against torch's AdamW with a group per parameter; factors against the published."""

import json

import pytest
import torch

from poa_ds.engine import optim
from poa_ds.engine.optim import EmaAdamW, Stretch
from poa_ds.export.published import heads_from_published
from poa_ds.model.vit.names import from_published
from poa_ds.recipe.tree import Optimizer
from tests.conftest import shared


def our_name(published: str) -> str:
    """The name that we give to one published parameter."""
    probe = {published: torch.zeros(192)}
    if published.startswith("backbone."):
        return "backbone." + next(iter(from_published(probe, head_dim=64)))
    return "heads." + next(iter(heads_from_published(probe)))


def test_factors_and_decay_are_the_published_parameter_groups() -> None:
    recipe = json.loads(shared("golden/06_schedules_groups/case.json").read_text())["recipes"]
    groups, checked = recipe["vit"]["param_groups"], 0
    for published, (lr, decay, is_last_layer, *_) in groups.items():
        name = our_name(published)
        factor = optim.lr_factor(name, depth=24, layer_decay=0.9, patch_embed_factor=0.2)
        assert factor == pytest.approx(lr, rel=1e-9), name
        assert optim.decays(name) == bool(decay), name
        assert (optim.part(name) == "last_layer") == is_last_layer, name
        checked += 1
    assert checked > 300


def flat_of(parameters: list[torch.Tensor]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))


def test_stretches_of_one_flat_equal_a_group_per_parameter() -> None:
    """In float64: in fp32 a bound on weights after steps would have to allow for rounding."""
    torch.manual_seed(0)
    shapes, factors = [(5, 3), (7,), (4, 4), (2,)], [0.5, 0.5, 1.0, 0.25]
    plain = [torch.nn.Parameter(torch.randn(s).double()) for s in shapes]
    flat = flat_of(plain)
    reference = torch.optim.AdamW(
        [{"params": [p]} for p in plain], lr=1.0, betas=(0.9, 0.99), eps=1e-8
    )
    ours = EmaAdamW([{"params": [flat]}], betas=(0.9, 0.99), eps=1e-8)
    ours.make_state(flat, flat)
    parts = ["", "", "last_layer", ""]
    offsets = [0, 15, 22, 38]
    ours.set_stretches(
        flat,
        [
            Stretch(o, p.numel(), f, part)
            for o, p, f, part in zip(offsets, plain, factors, parts, strict=True)
        ],
    )
    average = flat.detach().clone()
    for step in range(6):
        lr, decay, frozen = 0.01 * (step + 1), 0.1 * step, float(step >= 2)
        gradients = [torch.randn(s).double() for s in shapes]
        for p, g, group, factor, part in zip(
            plain, gradients, reference.param_groups, factors, parts, strict=True
        ):
            p.grad = g.clone()
            group["lr"] = lr * factor * (frozen if part else 1.0)
            group["weight_decay"] = decay
        reference.step()
        flat.grad = torch.cat([g.flatten() for g in gradients])
        ours.ema_momentum, ours.part_factors = 0.8, {"last_layer": frozen}
        ours.param_groups[0].update(lr=lr, weight_decay=decay)
        ours.step()
        average = 0.8 * average + 0.2 * flat.detach()
        assert torch.allclose(flat, flat_of(plain), rtol=1e-13, atol=1e-13)
        assert torch.allclose(ours.state[flat]["ema"], average, rtol=1e-13, atol=1e-13)


def test_neighbours_of_equal_factor_become_one_stretch() -> None:
    flat = torch.nn.Parameter(torch.zeros(10))
    ours = EmaAdamW([{"params": [flat]}], betas=(0.9, 0.999), eps=1e-8)
    ours.set_stretches(flat, [Stretch(4, 2, 1.0), Stretch(0, 4, 1.0), Stretch(6, 4, 0.5)])
    assert ours._stretches[id(flat)] == (Stretch(0, 6, 1.0), Stretch(6, 4, 0.5))


def test_a_skipped_step_changes_nothing_and_clipping_scales_the_gradient() -> None:
    flat = torch.nn.Parameter(torch.ones(4))
    ours = EmaAdamW([{"params": [flat]}], betas=(0.9, 0.999), eps=1e-8)
    ours.make_state(flat, flat)
    flat.grad, ours.skip, ours.ema_momentum = torch.ones(4), True, 0.5
    ours.param_groups[0]["lr"] = 0.1
    ours.step()
    assert torch.equal(flat.detach(), torch.ones(4)) and ours.state[flat]["step"] == 0
    ours.skip = False
    ours.param_groups[0]["clip_coefficient"] = torch.tensor(0.25)
    ours.step()
    assert torch.allclose(ours.state[flat]["exp_avg"], torch.full((4,), 0.1 * 0.25))


def test_the_average_starts_at_the_teacher_and_not_all_is_averaged() -> None:
    torch.manual_seed(0)
    student = torch.nn.ModuleDict(
        {"backbone": torch.nn.Linear(3, 2), "head": torch.nn.Linear(2, 2)}
    )
    teacher = torch.nn.ModuleDict({"backbone": torch.nn.Linear(3, 2)})
    before = [t.detach().clone() for t in teacher.parameters()]
    ours = optim.for_student(student, depth=2, options=Optimizer(), average=teacher)
    ours.ema_momentum, gradient = 0.75, torch.ones(())
    for group in ours.param_groups:
        group["lr"] = 0.1
    for p in student.parameters():
        p.grad = gradient.expand_as(p).clone()
    ours.step()
    for p, start in zip(student["backbone"].parameters(), before, strict=True):
        assert torch.allclose(ours.state[p]["ema"], 0.75 * start + 0.25 * p.detach())
    assert all("ema" not in ours.state[p] for p in student["head"].parameters())
    assert [group["averaged"] for group in ours.param_groups] == [True, True, False, False]
    alone = optim.for_student(student, depth=2, options=Optimizer(), average=None)
    assert not any("ema" in state for state in alone.state.values())


def test_four_groups_hold_every_parameter_once() -> None:
    names = ["backbone.norm.weight", "backbone.blocks.0.mlp.fc1.weight", "heads.0.weight_v"]
    named = [(n, torch.nn.Parameter(torch.zeros(1))) for n in names]
    groups = optim.parameter_groups(named, averaged=names)
    assert [(g["module"], g["decays"]) for g in groups] == [
        ("backbone", False),
        ("backbone", True),
        ("heads", True),
    ]

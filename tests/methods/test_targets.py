"""Targets of several slots and of steps: one Sinkhorn, running centres, the scores' precision."""

import pytest
import torch

from poa_ds.methods import losses, targets
from poa_ds.methods.terms import slot_terms
from poa_ds.model import branch as branches
from poa_ds.model.branch import Projections
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Objective
from poa_kernels import prototype_ce, prototype_ce_chunks
from poa_kernels.prototype_ce import Target
from tests.methods.test_poa import SPACE, arrays, batch, branch, case


def test_three_steps_of_centering_are_the_published_ones() -> None:
    student, teacher, b = branch("vit_student"), branch("vit_teacher"), batch()
    stored, centers, previous = arrays("vit_centering_centers"), {}, torch.zeros(16)
    for call, wanted in enumerate(case()["centering_three_calls_no_weight_update"]["runs"]):
        slots = [targets.teach(teacher, b, SPACE.intact, ibot=True)]
        assignments = targets.center(slots, 0.05, centers)[0]
        subnets = (SPACE.intact, Subnet(64, 3))
        terms = slot_terms(student, b, assignments, subnets, ibot=True, temperature=0.1)
        total = terms.total((0.8, 0.2), Objective())
        assert abs(total.item() / wanted["total_loss"] - 1) < 1e-6
        if call:  # the published centre is one call late: applied at the next use
            before = stored[f"dino_center_0_after_call{call}"].flatten()
            assert (previous - before).abs().max() < 1e-6
        previous = centers["cls.0"].clone()


def test_two_slots_share_one_sinkhorn() -> None:
    teacher, b = branch("vit_teacher"), batch()
    slot = targets.teach(teacher, b, SPACE.intact, ibot=True)
    reversed_rows = type(slot)(
        tuple(z.flip(0) for z in slot.cls),
        tuple(z.flip(0) * 0.5 for z in slot.patches),
        slot.cls_prototypes,
        slot.patch_prototypes,
    )
    first, second = targets.balance([slot, reversed_rows], 0.05, iterations=3)
    both = torch.cat([next(slot.scores()), next(reversed_rows.scores())])
    whole = losses.sinkhorn(both, 0.05, iterations=3)
    got = torch.cat([a.targets(0).global_cls.flatten(0, 1) for a in (first, second)])
    assert (got - whole).abs().max() < 1e-6


@pytest.mark.parametrize(("on_a_gpu", "allowed"), [(False, 1e-2), (True, 1e-3)])
def test_bf16_targets_are_the_distributions_that_were_balanced(
    on_a_gpu: bool, allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that are rounded otherwise than those of Sinkhorn move a target by 3 percent."""
    if on_a_gpu:
        for module in (branches, prototype_ce):
            monkeypatch.setattr(module, "finely", lambda x: x.half())
    generator = torch.Generator().manual_seed(0)
    w, noise = (torch.randn(rows, 64, generator=generator) for rows in (600, 200))
    w = torch.nn.functional.normalize(w, dim=-1)
    near = w[torch.randint(600, (200,), generator=generator)]
    z = torch.nn.functional.normalize(near + noise / 16, dim=-1)
    w, z, temperature = w.bfloat16(), z.bfloat16(), 0.04
    shown = Projections((z[:2],), (z,), (w,), (w,)).for_scores()
    assert shown.patches[0].dtype == (torch.float16 if on_a_gpu else torch.bfloat16)
    found = targets.balance([shown], temperature, iterations=3)[0]

    truth = losses.sinkhorn(z.float() @ w.float().T, temperature, iterations=3)
    rows = torch.arange(200, dtype=torch.int32)
    bias = found.patch_biases[0]
    target = Target(shown.patches[0], shown.patch_prototypes[0], temperature, bias, rows[:, None])
    ways = {
        "whole": found.targets(0).patches,
        "in chunks": prototype_ce_chunks._distribution(*prototype_ce_chunks._asked(target, rows)),
        "kernel's table": losses.targets(target.scores(), temperature, bias),
    }
    for name, got in ways.items():
        assert (got - truth).norm() < allowed * truth.norm(), name

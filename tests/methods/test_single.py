"""One size alone is POA whose smaller student weighs nothing: the same value to the bit."""

from dataclasses import replace

import torch
from torch import Tensor

from poa_ds.methods.method import method
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from tests.distributed.programs.worker import made_batch, recipe_with


def one_step(recipe: Recipe) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(terms and total, gradients) of two slots, without an engine."""
    own = method(recipe)
    networks, batches = own.networks(), [made_batch(recipe, 9, slot) for slot in (0, 1)]
    values = derived.schedules(recipe, 10**6).at(9)
    targets, state = own.targets(networks, batches, values, {})
    assert values.ibot_active and not state
    losses = [own.loss(networks, b, t, values) for b, t in zip(batches, targets, strict=True)]
    total = sum(total for total, _ in losses)
    total.backward()
    gradients = {n: p.grad for n, p in networks.student.named_parameters() if p.grad is not None}
    return {"total": total.detach(), **losses[0][1]}, gradients


def test_one_size_alone_is_poa_with_all_weight_on_the_intact_student() -> None:
    recipe = recipe_with(backbone__drop_path=0.0, objective={"intact_weight": 1.0, "koleo": 0.0})
    both, wanted = one_step(recipe)
    alone, found = one_step(replace(recipe, objective=replace(recipe.objective, method="single")))
    assert alone.keys() == {"total", "intact_dino", "intact_ibot", "koleo"}
    for name in ("total", "intact_dino", "intact_ibot"):
        assert torch.equal(alone[name], both[name]), name
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        # the smaller student's rows add zeros, in other sums: rounding
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name

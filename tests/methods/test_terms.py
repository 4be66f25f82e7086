"""n students: the sums of what each has alone, and of what each copies in a pair, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from poa_ds.engine.networks import Networks
from poa_ds.methods import targets, terms
from poa_ds.methods.method import method
from poa_ds.methods.terms import Terms, slot_terms
from poa_ds.model.backbone import DropPath
from poa_ds.model.space import Subnet
from poa_ds.recipe.derived import space
from poa_ds.recipe.tree import Objective, Recipe
from poa_ds.system.errors import UsageError
from tests.distributed.programs.worker import made_batch, recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES
from tests.methods.test_single import one_step

OBJECTIVE = Objective(dino=1.0, ibot=0.7, koleo=0.3)
WEIGHTS = (0.5, 0.3, 0.2)


class Slot:
    """One slot, three sizes, and what stochastic depth keeps of each."""

    def __init__(self, kind: str) -> None:
        backbone = BACKBONES.get(kind, {})
        self.recipe: Recipe = recipe_with(**({"backbone": backbone} if backbone else {}))
        self.networks: Networks = method(self.recipe).networks().double()
        sizes = space(self.recipe).subnets()
        self.sizes = (sizes[-1], sizes[0], sizes[len(sizes) // 2])
        batch = made_batch(self.recipe, 0, 0)
        self.batch = type(batch).of(
            batch.global_crops.double(), batch.local_crops.double(), batch.masks
        )
        shown = targets.teach(self.networks.teacher, self.batch, self.sizes[0], ibot=True)
        self.targets = targets.balance([shown], 0.06, iterations=3)[0]
        backbone, crops = self.networks.backbone, (batch.global_crops, batch.local_crops)
        generator, rate = torch.Generator().manual_seed(0), self.recipe.backbone.drop_path
        packing = backbone.packing(crops)
        self.drawn = backbone.draw_drop_path(packing, self.sizes, rate, generator, "cpu")

    def terms(self, *students: int, **options: str) -> Terms:
        """Of those of the three sizes, each with its own stochastic depth."""
        subnets: list[Subnet] = [self.sizes[k] for k in students]
        drops = (
            [tuple(block[k] for k in students) for block in self.drawn.drops]
            if self.drawn
            else None
        )
        return slot_terms(
            self.networks.student,
            self.batch,
            self.targets,
            subnets,
            ibot=True,
            temperature=0.1,
            drop_path=drops and DropPath(tuple(drops)),
            **options,
        )

    def gradients(self, total: Tensor) -> dict[str, Tensor]:
        student = self.networks.student
        student.zero_grad()
        total.backward()
        return {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("kind", ["vit", *BACKBONES])
def test_three_students_are_three_runs_of_one(
    kind: str, by_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_rows:
        monkeypatch.setattr(terms, "is_large", lambda *_: True)
    slot = Slot(kind)
    together = slot.terms(0, 1, 2)
    alone, pairs = [slot.terms(k) for k in range(3)], [slot.terms(0, k) for k in (1, 2)]
    for name in ("dino", "ibot"):
        apart = torch.stack([getattr(one, name)[0] for one in alone])
        assert torch.allclose(getattr(together, name), apart, rtol=1e-12)
    total = together.total(WEIGHTS, OBJECTIVE, imitation=0.4)
    each = [
        w * (OBJECTIVE.dino * one.dino[0] + OBJECTIVE.ibot * one.ibot[0])
        for w, one in zip(WEIGHTS, alone, strict=True)
    ]
    copied = [0.4 * w * pair.imitation[0] for w, pair in zip(WEIGHTS[1:], pairs, strict=True)]
    spread = OBJECTIVE.koleo * sum(one.koleo for one in alone) / 3
    slow = sum(each) + sum(copied) + spread
    assert abs(total.item() / slow.item() - 1) < 1e-12
    got, wanted = slot.gradients(total), slot.gradients(slow)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        allowed = 1e-8 if name.endswith("pos_embed") else 1e-11  # positions resized in float32
        assert (got[name] - gradient).norm() <= allowed * gradient.norm() + 1e-15, name


@pytest.mark.parametrize("kind", ["vit", *BACKBONES])
def test_koleo_of_the_intact_student_alone(kind: str) -> None:
    slot = Slot(kind)
    both, of_one = slot.terms(0, 1), slot.terms(0, 1, koleo_students="intact")
    alone = slot.terms(0).koleo
    assert torch.allclose(of_one.koleo, alone, rtol=1e-12)
    assert not torch.allclose(of_one.koleo, both.koleo, rtol=1e-3)
    weights, plain = (0.8, 0.2), replace(OBJECTIVE, koleo=0.0)
    got = slot.gradients(of_one.total(weights, OBJECTIVE))
    wanted = slot.gradients(both.total(weights, plain) + OBJECTIVE.koleo * alone)
    for name, gradient in wanted.items():
        allowed = 1e-8 if name.endswith("pos_embed") else 1e-11  # positions resized in float32
        assert (got[name] - gradient).norm() <= allowed * gradient.norm() + 1e-15, name


def test_a_recipe_says_whose_koleo_it_is() -> None:
    both = recipe_with(backbone__drop_path=0.0)
    intact = recipe_with(backbone__drop_path=0.0, objective={"koleo_students": "intact"})
    alone = recipe_with(backbone__drop_path=0.0, objective={"method": "single"})
    wanted = one_step(alone)[0]["koleo"]
    assert torch.allclose(one_step(intact)[0]["koleo"], wanted)
    assert not torch.allclose(one_step(both)[0]["koleo"], wanted, rtol=1e-3)


@pytest.mark.parametrize("changed", [{"method": "single"}, {"koleo": 0.0}])
def test_koleo_of_nobody_in_particular_is_refused(changed: dict) -> None:
    with pytest.raises(UsageError, match=r"objective\.koleo_students intact"):
        recipe_with(objective={"koleo_students": "intact"} | changed)


def test_the_names_of_terms_tell_students_apart() -> None:
    def named(n: int) -> set[str]:
        x = torch.arange(float(n))
        return set(Terms(x, x, x[1:], x.sum()).detached())

    both = {"intact_dino", "intact_ibot", "elastic_dino", "elastic_ibot", "imitation", "koleo"}
    assert named(2) == both
    assert named(1) == {"intact_dino", "intact_ibot", "koleo"}
    assert named(3) - both == {"elastic2_dino", "elastic2_ibot", "imitation2"}

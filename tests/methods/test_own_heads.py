"""heads.elastic own: the smaller student's heads, against losses that autograd takes one by one."""

import zlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.engine.optim import parameter_groups, part
from poa_ds.methods import terms
from poa_ds.methods.method import method
from poa_ds.methods.targets import Assignments
from poa_ds.model.heads import HeadBank
from poa_ds.recipe import continuing, derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.recipe.twin import twin
from poa_ds.system.errors import UsageError
from tests.distributed.programs.worker import made_batch, recipe_with
from tests.methods.test_sweet import tree as sweet_tree

OBJECTIVE = {"intact_weight": 0.7, "imitation": 0.4, "ibot": 0.6, "koleo": 0.0}


def own(**changes: object) -> Recipe:
    tree = {"backbone__drop_path": 0.0, "heads__elastic": "own", "objective": OBJECTIVE}
    return recipe_with(**tree | changes)


class Slot:
    """One slot in float64, and what the teacher says of it. at: its step."""

    def __init__(self, recipe: Recipe, at: int = 9) -> None:
        self.recipe, self.own = recipe, method(recipe)
        self.networks = self.own.networks().double()
        with torch.no_grad():  # heads that have learned, each its own
            for name, p in self.networks.student.named_parameters():
                generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
                p += 0.05 * torch.randn(p.shape, generator=generator).to(p) * ("heads" in name)
        batch = made_batch(recipe, at, 0)
        crops = batch.global_crops.double(), batch.local_crops.double()
        self.batch = replace(batch, global_crops=crops[0], local_crops=crops[1])
        self.values = derived.schedules(recipe, 10**6).at(at)
        (self.target,), _ = self.own.targets(self.networks, [self.batch], self.values, {})

    def gradients(self, total: Tensor) -> dict[str, Tensor]:
        named = dict(self.networks.student.named_parameters())
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return {n: g for n, g in zip(named, found, strict=True) if g is not None}

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        return self.own.loss(self.networks, self.batch, self.target, self.values)

    def slow(self) -> Tensor:
        """The total from one pass and one head at a time, pair by pair, image by image."""
        student, b, options = self.networks.student, self.batch, self.recipe.objective
        scores = []
        banks = (student.heads, student.elastic_heads)
        patch_banks = (student.ibot_heads or banks[0], student.elastic_ibot_heads or banks[1])
        for size, bank, of_patches in zip(self.own.sizes(9, 0), banks, patch_banks, strict=True):
            whole = student.backbone(b.global_crops, size, b.masks)
            local = student.backbone(b.local_crops, size)[:, 0]
            masked = whole[:, 1:][b.masks]
            cls = bank.scores(torch.cat((whole[:, 0], local)))
            scores.append(list(zip(cls, of_patches.scores(masked), strict=True)))
        heads = len(scores[0])
        total = sum(self._of_head(h, scores[0][h], scores[1][h]) for h in range(heads))
        assert options.koleo == 0
        return total / heads

    def _of_head(self, head: int, intact: tuple, elastic: tuple) -> Tensor:
        options, n = self.recipe.objective, self.batch.size
        target: Assignments = self.target
        wanted = target.targets(head)
        views = len(intact[0]) // n

        def ce(p: Tensor, s: Tensor) -> Tensor:
            return -(p * F.log_softmax(s / options.student_temperature, -1)).sum()

        def taught(cls: Tensor, patches: Tensor) -> Tensor:
            cls = cls.view(views, n, -1)
            pairs = [(v, crop) for v in range(views) for crop in (0, 1) if v != crop]
            dino = sum(
                ce(wanted.global_cls[crop, i], cls[v, i]) for v, crop in pairs for i in range(n)
            )
            rows = zip(wanted.patches, patches, self.batch.mask_weights, strict=True)
            ibot = sum(weight * ce(p, s) for p, s, weight in rows)
            return options.dino * dino / (len(pairs) * n) + options.ibot * ibot / (2 * n)

        copied = F.softmax(intact[0].detach() / options.student_temperature, -1)
        split = 2 * n
        imitation = ce(copied[:split], elastic[0][:split]) / split
        imitation = imitation + ce(copied[split:], elastic[0][split:]) / (len(copied) - split)
        weight = options.intact_weight
        return weight * taught(*intact) + (1 - weight) * (
            taught(*elastic) + options.imitation * imitation
        )


@pytest.mark.parametrize("separate_ibot", [False, True])
@pytest.mark.parametrize("by_rows", [False, True])
def test_total_and_gradients_are_those_of_the_slow_way(
    by_rows: bool, separate_ibot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_rows:
        monkeypatch.setattr(terms, "is_large", lambda *_: True)
    slot = Slot(own(heads__separate_ibot=separate_ibot))
    (total, _), slow = slot.loss(), slot.slow()
    assert abs(total.item() / slow.item() - 1) < 1e-6  # targets are float32
    got, wanted = slot.gradients(total), slot.gradients(slow)
    assert got.keys() == wanted.keys() == dict(slot.networks.student.named_parameters()).keys()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-12, name


def test_a_run_begins_with_what_shared_heads_say() -> None:
    """Same weights, same terms; the intact student's gradients are then its own alone."""
    found = {}
    for elastic in ("shared", "own"):
        recipe = own(heads__elastic=elastic)
        trained = method(recipe)
        networks, batch = trained.networks(), made_batch(recipe, 9, 0)
        values = derived.schedules(recipe, 10**6).at(9)
        (target,), _ = trained.targets(networks, [batch], values, {})
        total, parts = trained.loss(networks, batch, target, values)
        total.backward()
        found[elastic] = parts, {n: p.grad for n, p in networks.student.named_parameters()}
    (parts, both), (others, apart) = found["shared"], found["own"]
    for name, value in parts.items():
        assert torch.allclose(others[name], value, rtol=1e-6), name
    for name, gradient in both.items():
        own_part = apart.get(f"elastic_{name}", torch.zeros(()))
        error = (apart[name] + own_part - gradient).norm()
        assert error <= 1e-4 * gradient.norm() + 1e-8, name


def test_they_have_no_average_and_the_limits_decay_and_frozen_layer_of_heads() -> None:
    networks = method(own(heads__separate_ibot=True)).networks()
    names = {n for n in networks.trained() if n.startswith("elastic_")}
    assert {n.split(".")[0] for n in names} == {"elastic_heads", "elastic_ibot_heads"}
    assert names == networks.trained().keys() - networks.averaged().keys()
    assert not any(n.startswith("elastic_") for n in networks.teacher.state_dict())
    groups = parameter_groups(networks.trained().items(), averaged=networks.averaged())
    kinds = {(g["module"], g["decays"], g["averaged"]) for g in groups}
    assert {k for k in kinds if k[0] == "elastic_heads"} == {
        ("elastic_heads", True, False),
        ("elastic_heads", False, False),
    }
    frozen = {n for n in names if part(n) == "last_layer"}
    assert {n.rsplit(".")[-1] for n in frozen} == {"weight_g", "weight_v"}


@pytest.mark.parametrize("separate_ibot", [False, True])
def test_while_the_intact_student_learns_alone_they_are_entered_and_get_zeros(
    separate_ibot: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that ZeRO-3 meets the same modules on the way back in every step."""
    entered: list[HeadBank] = []
    real = HeadBank.forward
    monkeypatch.setattr(
        HeadBank, "forward", lambda self, *x: entered.append(self) or real(self, *x)
    )
    changes = {"objective": OBJECTIVE | {"slow_start": 0.5}, "heads__separate_ibot": separate_ibot}
    slot, alone = Slot(own(**changes)), Slot(own(**changes, heads__elastic="shared"))
    assert not slot.values.all_sizes
    entered.clear()
    (total, parts), (wanted, others) = slot.loss(), alone.loss()
    banks = 2 * (1 + separate_ibot)
    assert len({id(bank) for bank in entered[:banks]}) == banks
    assert set(parts) == {"intact_dino", "intact_ibot", "koleo"} == set(others)
    gradients = slot.gradients(total)
    assert gradients.keys() == dict(slot.networks.student.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert name.startswith("elastic_") == (not gradient.any()), name
    assert torch.equal(total, wanted)


def test_sweet_has_them_too() -> None:
    recipe = recipe_with(**sweet_tree([0, 0, 0]), heads__elastic="own")
    assert any(n.startswith("elastic_heads.") for n in method(recipe).networks().trained())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"method": "single"}, r"heads.elastic own: objective.method single has none"),
        ({"method": "dspnet"}, r"heads.elastic own: objective.method dspnet has none"),
        (
            {"loss": "byol", "ibot": 0, "koleo": 0},
            r"heads.elastic own: objective.loss byol .* write heads.elastic=shared",
        ),
    ],
)
def test_whoever_has_no_such_heads_refuses_them(objective: dict, message: str) -> None:
    tree = {"heads__elastic": "own", "objective": objective}
    if objective.get("method") == "dspnet":
        tree["draws"] = Recipe().draws
    with pytest.raises(UsageError, match=message):
        recipe_with(**tree)


def test_a_run_keeps_its_choice_and_its_twin_has_none() -> None:
    recipe = own(objective=OBJECTIVE | {"koleo": 0.1, "koleo_students": "intact"})
    before = load.to_yaml(own(heads__elastic="shared"))
    with pytest.raises(UsageError, match=r"heads.elastic: shared -> own"):
        continuing.refuse(continuing.changes(before, own()), "a checkpoint")
    alone = twin(recipe, derived.space(recipe).smallest)
    assert (alone.heads.elastic, alone.objective.koleo_students) == ("shared", "all")

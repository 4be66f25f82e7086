"""The whole step of three branches with kernels against the plain one: terms and all gradients."""

import pytest
import torch
from torch import Tensor

from poa_ds.data.batch import Batch
from poa_ds.methods import targets, terms
from poa_ds.methods.terms import slot_terms
from poa_ds.model.branch import Branch
from poa_ds.model.heads import HeadBank
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe.tree import Objective
from poa_kernels import dispatch, prototype_ce, prototype_ce_chunks
from tests.kernels.truth import DEVICE

SPACE = ElasticSpace((16, 32), (1, 2))


def branch(seed: int) -> Branch:
    torch.manual_seed(seed)
    backbone = ElasticViT(SPACE, image_size=32, patch_size=8, head_dim=16, layer_scale=0.3)
    heads = HeadBank(SPACE.intact.width, (20, 30), hidden=24, bottleneck=16)
    return Branch(backbone, heads).to(DEVICE)


def batch(size: int = 2, crops: int = 2) -> Batch:
    torch.manual_seed(5)
    masks = torch.rand(2 * size, 16) < 0.3
    views = torch.randn(2 * size, 3, 32, 32), torch.randn(crops * size, 3, 16, 16)
    return Batch.of(*views, masks).to(DEVICE)


def step(
    mode: dispatch.Mode, elastic: Subnet, crops: int, *, ibot: bool, temperature: float = 0.06
) -> dict[str, Tensor]:
    """Terms and gradients by name. temperature: the teacher's."""
    student, teacher, b = branch(0), branch(1), batch(crops=crops)
    with dispatch.using(mode):
        shown = targets.teach(teacher, b, SPACE.intact, ibot=ibot)
        assignments = targets.balance([shown], temperature, iterations=3)[0]
        views = [c for c in (b.global_crops, b.local_crops) if len(c)]
        backbone, subnets = student.backbone, (SPACE.intact, elastic)
        generator = torch.Generator().manual_seed(2)
        drops = backbone.draw_drop_path(backbone.packing(views), subnets, 0.4, generator, DEVICE)
        found = slot_terms(
            student, b, assignments, subnets, ibot=ibot, temperature=0.1, drop_path=drops
        )
        found.total((0.8, 0.2), Objective()).backward()
    gradients = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
    return found.detached() | gradients


@pytest.mark.parametrize(
    ("elastic", "crops", "ibot"),
    [
        (Subnet(16, 1), 1, True),
        pytest.param(Subnet(32, 1), 2, False, marks=pytest.mark.slow),
        pytest.param(Subnet(16, 2), 0, True, marks=pytest.mark.slow),
    ],
)
def test_kernels_compute_the_same_step(elastic: Subnet, crops: int, ibot: bool) -> None:
    plain = step("reference", elastic, crops, ibot=ibot)
    agree(step("triton", elastic, crops, ibot=ibot), plain)


def agree(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        # float32, two orders of summation
        error = (ours[name] - expected).norm() / expected.norm().clamp_min(1e-6)
        assert error < 2e-5, f"{name}: {error:.1e}"


def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """All heads are large ones, whose losses are made part by part."""
    monkeypatch.setattr(terms, "is_large", lambda *_: True)
    monkeypatch.setattr(prototype_ce, "is_large", lambda *_: True)
    monkeypatch.setattr(prototype_ce_chunks, "CHUNK", 100)  # 3 rows of the larger head


def test_large_heads_compute_the_same_step_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = step("auto", Subnet(16, 1), 2, ibot=True)
    in_parts(monkeypatch)
    agree(step("auto", Subnet(16, 1), 2, ibot=True), whole)

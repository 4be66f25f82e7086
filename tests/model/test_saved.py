"""What each architecture counts as kept is what autograd holds, for one size and for two."""

import pytest
import torch
from torch import Tensor

from poa_ds.plan.students import Students
from poa_ds.recipe import derived
from poa_ds.recipe.backbone import backbone
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES
from tests.methods.test_sweet import tree

TUCKER = tree([6, 24, 40])["backbone"]
CASES = {
    "vit": {},
    "vit without stochastic depth": {"backbone__drop_path": 0.0},
    "vit, one resolution": {"crops__local_count": 0},
    "vit with registers and SwiGLU": {
        "backbone__registers": 3,
        "backbone__swiglu": 88,
        "backbone__norm_eps": 1e-5,
    },
    "vit with rotary positions": {
        "backbone__positions": "rope",
        "backbone__qkv_bias": "none",
    },
    "tucker": {"backbone": TUCKER},
    "swin": {"backbone": BACKBONES["swin"]},
    "swin without stochastic depth": {"backbone": BACKBONES["swin"] | {"drop_path": 0.0}},
    "swin that was a slice": {
        "backbone": BACKBONES["swin"] | {"projected": 128, "shifted": [False, True, True, False]}
    },
    "resnet": {"backbone": BACKBONES["resnet"]},
}


def held(students: Students) -> int:
    """Bytes that autograd keeps of the forward passes of the students' backbones."""
    recipe = students.recipe
    model = backbone(recipe)
    weights = {p.data.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def hold(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    channels = recipe.data.channels
    crops = [torch.randn(n, channels, side, side) for n, side in students.streams.crops]
    generator, rate = torch.Generator().manual_seed(0), recipe.backbone.drop_path
    packing = model.packing(crops)
    drawn = model.draw_drop_path(packing, students.subnets, rate, generator, "cpu")
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        tokens = model.streams(crops, students.subnets, [None] * len(crops), drawn)
    assert len(tokens) == len(students.subnets)  # alive: so are the tensors that were held
    return sum(kept.values())


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_what_autograd_keeps_is_what_was_counted(case: str, count: int) -> None:
    torch.manual_seed(0)
    recipe = recipe_with(**CASES[case])
    space = derived.space(recipe)
    sizes = space.subnets()
    for elastic in (sizes[0], sizes[len(sizes) // 2]):
        students = Students(recipe, (space.intact, elastic)[:count], masked=0)
        counted = sum(students.saved().all_kept().values())
        assert counted == pytest.approx(held(students), rel=0.05), elastic

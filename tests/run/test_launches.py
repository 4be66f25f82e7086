"""What one slot of the ImageNet recipes asks of a GPU, counted without one.

No operation may mix devices, wait for a transfer or read a value of the device; and launches have
a budget: below about 50 us of work each, a GPU waits for the host.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorDeviceMismatchError,
    FakeTensorMode,
)

from poa_ds.data.batch import Batch, mask_lists
from poa_ds.data.image import photometric
from poa_ds.data.image.masks import batch_masks
from poa_ds.data.spec import photometric_spec
from poa_ds.engine.networks import Networks
from poa_ds.evaluate.features import Readout
from poa_ds.evaluate.neighbours import Bank, local_neighbours
from poa_ds.methods.method import Method, method
from poa_ds.model import packing
from poa_ds.model.swin import windows
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.transfer import send
from poa_kernels import prototype_ce_chunks, rows
from tests.support.counted import Counted, counted

OTHERS = ("swin_b_in1k", "resnet152x2_in1k")


@dataclass(frozen=True)
class Budget:
    """Of one slot. launches, gigabytes: forward and backward, nothing fused. host: operations on
    the CPU before the loss. sorted: gradients of x[rows] that add up, for which rows are sorted.
    evaluation: launches of one batch and two sizes."""

    launches: int
    gigabytes: float
    host: int
    sorted: int
    evaluation: int


BUDGETS = {
    "vit_l16_in1k": Budget(5_450, 650, 310, 4, 1_500),
    "swin_b_in1k": Budget(6_000, 730, 350, 41, 900),
    "resnet152x2_in1k": Budget(6_500, 410, 100, 4, 850),
}


def a_batch(recipe: Recipe) -> Batch:
    """uint8 crops without contents worth looking at, as a loader hands them over."""
    images, crops, rng = recipe.batch.images_per_slot, recipe.crops, random.Random(0)
    spec, side = photometric_spec(recipe), derived.shape(recipe).grid(crops.global_size)
    masks = batch_masks(2 * images, side, side, probability=0.5, ratio=(0.1, 0.5), rng=rng)

    def draws(kinds: tuple[int, ...]) -> photometric.Photometric:
        drawn = [photometric.draw(rng, spec, kind) for kind in kinds for _ in range(images)]
        return photometric.Photometric.stack(drawn)

    def pixels(count: int, size: int) -> torch.Tensor:
        return torch.empty(count * images, 3, size, size, dtype=torch.uint8)

    kinds = (photometric.GLOBAL_1, photometric.GLOBAL_2)
    return Batch(
        0,
        0,
        pixels(2, crops.global_size),
        pixels(crops.local_count, crops.local_size),
        masks,
        *mask_lists(masks),
        draws(kinds),
        draws((photometric.LOCAL,) * crops.local_count),
    )


def hollow_networks(made: Method, hollow: FakeTensorMode, device: str) -> Networks:
    """The method's networks in bf16, without contents."""
    # truncated normal numbers are drawn and read until they fit
    truncated = mock.patch.object(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)
    torch.set_default_dtype(torch.bfloat16)  # they cannot be converted
    try:
        with truncated, hollow, torch.device(device):
            return made.networks()
    finally:
        torch.set_default_dtype(torch.float32)


def forward(name: str) -> Counted:
    """Everything between a loaded batch and its loss, on a GPU that is not there."""
    recipe = load.recipe(Path(name))
    made, values = method(recipe), derived.schedules(recipe, 10**6).at(10**5)
    hollow = FakeTensorMode(allow_non_fake_inputs=True)
    batch, networks = a_batch(recipe), hollow_networks(made, hollow, "cuda")
    with counted(hollow) as count:
        batch = batch.pin_memory().to("cuda").augmented(photometric_spec(recipe))
        targets, _ = made.targets(networks, [batch], values, {})
        made.loss(networks, batch, targets[0], values)
    windows.windows.cache_clear()  # hollow tensors
    windows.relative_positions.cache_clear()
    return count


def backward(name: str) -> Counted:
    """The backward pass of one slot."""
    recipe = load.recipe(Path(name))
    made, values = method(recipe), derived.schedules(recipe, 10**6).at(10**5)
    hollow, batch = FakeTensorMode(allow_non_fake_inputs=True), a_batch(recipe)
    networks = hollow_networks(made, hollow, "cpu")
    with hollow:
        crops = [torch.empty(x.shape) for x in (batch.global_crops, batch.local_crops)]
    batch = replace(batch, global_crops=crops[0], local_crops=crops[1])
    with counted(hollow) as count:
        targets, _ = made.targets(networks, [batch], values, {})
        total, _ = made.loss(networks, batch, targets[0], values)
        count.clear()
        total.backward()
    return count


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_l16_in1k", *OTHERS])
def test_a_slot_waits_for_nothing_and_keeps_to_its_budget(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototype_ce_chunks, "CHUNK", prototype_ce_chunks.CHUNK_ON_GPU)
    monkeypatch.setattr(rows, "saves_launches", lambda x: True)  # the backward pass is a CPU's
    budget, there, back = BUDGETS[name], forward(name), backward(name)
    assert not there.faults, dict(there.faults)
    launches = there.launches + back.launches + back.host
    gigabytes = (there.bytes_moved + back.bytes_moved) / 1e9
    assert there.host.total() <= budget.host, there.host.most_common(8)
    assert launches.total() <= budget.launches, launches.most_common(20)
    assert gigabytes <= budget.gigabytes
    assert launches["index_put"] <= budget.sorted, (
        "x[rows]: gather_rows where no row is taken twice"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_l16_in1k", *OTHERS])
def test_an_evaluation_waits_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of two sizes, and their neighbours in a bank that lies on the device."""
    recipe, device = load.recipe(Path(name)), torch.device("cuda")
    made, hollow = method(recipe), FakeTensorMode(allow_non_fake_inputs=True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    model = hollow_networks(made, hollow, "cuda").teacher.backbone
    sizes = (derived.space(recipe).smallest, derived.space(recipe).intact)
    with counted(hollow) as count:
        encode = Readout.of(recipe, device).encoder(model, sizes)
        count.clear()  # mean and std, once
        found = encode(torch.empty(8, 3, 224, 224, dtype=torch.uint8, device=device))
        bank = [Bank([x.float()] * 3, [range(8)] * 3).near(device) for x in found]
        pairs = zip(found, bank, strict=True)
        keys = [local_neighbours([x.float()], near, 5)[0] for x, near in pairs]
    assert [k.device.type for k in keys] == ["cuda", "cuda"] and not count.faults, count.faults
    windows.windows.cache_clear()  # hollow tensors
    windows.relative_positions.cache_clear()
    assert count.launches.total() <= BUDGETS[name].evaluation, count.launches.most_common(20)


def test_what_waited_once_is_noticed_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of the host that are not page-locked: stochastic depth, the colours."""
    hollow = FakeTensorMode(allow_non_fake_inputs=True)
    for module in (packing, photometric):
        monkeypatch.setattr(module, "send", torch.Tensor.to)
    recipe = load.recipe(Path("photos"))
    batch = a_batch(recipe)
    with counted(hollow) as count:
        packing.draw_drops(packing.Packing(((4, 5),)), 0.4, torch.Generator(), device="cuda")
        batch.pin_memory().to("cuda").augmented(photometric_spec(recipe))
    for place in ("poa_ds/model/packing.py:", "poa_ds/data/image/photometric.py:"):
        assert any(f"waits, {place}" in fault for fault in count.faults), count.faults


def test_the_count_notices_what_a_gpu_would_wait_for() -> None:
    hollow, host = FakeTensorMode(allow_non_fake_inputs=True), torch.arange(5)
    with counted(hollow) as count:
        x = torch.ones(5, device="cuda")
        y = x + send(host, "cuda")
        assert (count.faults.total(), count.launches.total()) == (0, 3) and len(count.host) == 0
        x.new_tensor((1.0, 2.0))
        host.to("cuda")
        torch.arange(6).to("cuda", non_blocking=True)  # not page-locked
        assert count.faults.total() == 3
        y.cpu()
        assert [*count.faults.values()] == [1] * 4, dict(count.faults)
        x[host]  # copies the numbers, unasked
        assert any("index mixes devices" in fault for fault in count.faults)
        with pytest.raises(FakeTensorDeviceMismatchError):
            x.index_select(0, host)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()

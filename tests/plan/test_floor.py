"""The counted floor of a step holds against what PyTorch's own counter sees of a plain step."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from poa_ds.bench.contenders import Job, build
from poa_ds.plan.floor import Floor, products, update_bytes
from poa_ds.recipe import derived, ds_json
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES

RARE = {"backbone__drop_path": 0.3, "heads__separate_ibot": True, "heads__layers": 2}
SWIN = {"backbone": BACKBONES["swin"] | {"drop_path": 0.0}}


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        (RARE, True),
        pytest.param({}, True, marks=pytest.mark.slow),
        # where a narrow Swin adds up weight gradients in place PyTorch's counter does not see it
        pytest.param(SWIN, False, marks=pytest.mark.slow),
    ],
    ids=["subsets, two heads", "vit", "swin"],
)
def test_the_products_are_those_of_a_plain_step(changes: dict, drawn: bool) -> None:
    recipe = recipe_with(batch={"slots": 2, "images_per_slot": 4}, **changes)
    size = None if drawn else derived.space(recipe).intact
    job = Job(recipe, ds_json.resolved(recipe, {}, 1), size, "cpu")
    step, batches = build("three passes", job), job.batches(3)
    with FlopCounterMode(display=False) as counter:
        step(batches, job.values())
    counted = products(recipe, job.sizes(3))
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_update_moves_the_state_once() -> None:
    single, half = (update_bytes(recipe_with(precision=p)) for p in ("fp32", "bf16"))
    # weight, two moments, average: read and written; gradient; what both networks compute with
    assert single / half == (8 * 4 + 4) / (8 * 4 + 2 + 2 + 2)


def test_recomputed_activations_are_no_part_of_it() -> None:
    recipe, again = recipe_with(), recipe_with(backbone__activation_checkpointing=True)
    sizes = ((derived.space(recipe).intact,),)
    assert products(again, sizes) == products(recipe, sizes)


def test_products_and_update_follow_each_other() -> None:
    assert Floor(flops=6e12, bytes=2e12).seconds(2e12, 4e12) == 3.5

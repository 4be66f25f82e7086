"""What `poa-ds plan` counts of the methods besides POA, against real steps and by hand."""

from pathlib import Path

import pytest
import torch

from poa_ds.cli import main
from poa_ds.methods import frozen
from poa_ds.methods.method import method
from poa_ds.model.space import Subnet
from poa_ds.plan import distillation, losses
from poa_ds.plan import state as plan_state
from poa_ds.plan import step_time as plan_time
from poa_ds.plan.students import Students, every_size, fixed
from poa_ds.recipe import load
from tests.distributed.programs.worker import recipe_with
from tests.methods.test_byol import byol_tree
from tests.methods.test_dspnet import tree
from tests.methods.test_seed import changes
from tests.plan.test_plan import arguments, check_saved, check_state, measured, plan
from tests.support.teachers import make_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("teacher") / "run")


@pytest.mark.slow
def test_bytes_of_other_methods_are_what_was_counted(teacher: Path, tmp_path: Path) -> None:
    imitating = changes(teacher)
    imitating["distill"] = imitating["distill"] | {"imitation": 1.0}
    local = imitating["distill"] | {"local": True}
    shapes = {
        "all sizes": tree(32, 48, 64),
        "all sizes, without prototypes": byol_tree(32, 48, 64),
        "the same, imitating": byol_tree(32, 64, slimmable={"imitation": 1.0}),
        "large heads": tree(32, 64, heads={"prototypes": [130_000], "bottleneck": 4}),
        "from a teacher": changes(teacher),
        "from a teacher, imitating": imitating,
        "of patches too": changes(teacher) | {"distill": imitating["distill"] | {"patches": 0.5}},
        "of local crops too": changes(teacher, crops__local_count=3) | {"distill": local},
    }
    found = measured(tmp_path, 1, [1], shapes)
    check_state(found, shapes, world=1)
    ratios = check_saved(found, shapes)
    assert all(0.95 < ratio < 1.05 for ratio in ratios), ratios


def test_what_none_imitates_is_not_counted() -> None:
    def kept(imitation: float) -> float:
        recipe = recipe_with(**tree(32, 48, 64, slimmable={"imitation": imitation}))
        return losses.saved(Students(recipe, fixed(recipe), 5))["probabilities and targets"]

    def of_poa(imitation: float) -> float:
        recipe = recipe_with(objective={"imitation": imitation})
        shown = Students(recipe, (Subnet(64, 4), Subnet(32, 2)), 5)
        return losses.saved(shown)["probabilities and targets"]

    views = 5 * 4  # crops x images
    assert kept(1.0) - kept(0.0) == 2 * 2 * views * (48 + 96) * 4
    assert of_poa(1.0) - of_poa(0.0) == 2 * views * (48 + 96) * 4


def test_a_plan_of_a_frozen_teacher_has_its_own_parts(
    teacher: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = load.recipe(Path("photos_seed"), [f"distill.teacher={teacher}"])
    largest = max(every_size(recipe), key=lambda each: sum(each.saved().all_kept().values()))
    assert not {"prototypes", "KoLeo", "bottlenecks"} & losses.saved(largest).keys()
    network = plan_state.network(recipe)
    whole = method(recipe).teacher.network()
    assert network.frozen == sum(p.numel() for p in whole.parameters())
    assert network.queue == 1024 * 48 and network.averaged == 0
    with_queue = plan_state.checkpoint_bytes(network)
    assert with_queue == 4 * (3 * network.parameters + 1024 * 48)
    words = ["--config", "photos_seed", "--nodes", "1", "--gpus", "2"]
    assert main(["plan", *words, f"distill.teacher={teacher}"]) == 0
    printed = capsys.readouterr().out
    assert "48x3, frozen: 0." in printed and "similarities to the queue" in printed
    assert "Sinkhorn and cross" not in printed and "KoLeo" not in printed
    # a teacher of a fraction of the work costs that fraction, in memory the whole network
    small = plan.prepare(arguments(*words, f"distill.teacher={teacher}:32x2"))
    large = plan.prepare(arguments(*words, f"distill.teacher={teacher}"))
    assert small.network.frozen == large.network.frozen
    for a, b in zip(small.times, large.times, strict=True):
        assert a.step.teacher < 0.6 * b.step.teacher and a.step.intact == b.step.intact


def test_operations_of_a_step_by_hand(teacher: Path) -> None:
    recipe = load.recipe(Path("photos_seed"), [f"distill.teacher={teacher}"])
    found = plan_time.work(recipe)
    views, queue, out, hidden = 2 * 32, 1024, 48, 256
    head = 64 * hidden + hidden * out
    assert found.heads == 2 * 3 * (2 * views) * head
    assert found.float32 == 2 * views * queue * out * (2 * 3 + 2)
    tokens, c = 1 + 16, 48
    block = 12 * c * c * tokens + 2 * tokens**2 * c
    assert found.teacher == 2 * views * (3 * block + 16 * c * 3 * 64)
    straight = load.recipe(Path("photos_seed"), [f"distill.teacher={teacher}", "distill.hidden=0"])
    assert plan_time.work(straight).heads == 2 * 3 * (2 * views) * 64 * out


@pytest.mark.parametrize("kind", ["timm", "state-dict"])
def test_an_extracted_teacher_costs_what_its_size_in_a_run_does(
    kind: str, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plain"
    words = ["extract", str(teacher), "--size", "48x3", "--format", kind, "--out", str(out)]
    assert main(words) == 0
    found, wanted = (frozen.find(str(place), 32).cost(32) for place in (out, teacher))
    assert found.flops == pytest.approx(wanted.flops, rel=1e-6)
    # the run's has a mask token, and scales for every block
    assert 0 <= wanted.parameters - found.parameters <= 48
    assert frozen.find(str(out), 32).digest().dtype == torch.float32
    assert distillation.cost(recipe_with(**changes(out))) == found

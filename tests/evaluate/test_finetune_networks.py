"""What a size is fine-tuned as computes what it does in its run, head included."""

from pathlib import Path

import pytest
import torch

from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.engine.networks import Networks
from poa_ds.engine.optim import is_matrix, lr_factor
from poa_ds.evaluate.finetune.recipes import Job
from poa_ds.export import start
from poa_ds.export.extract import extract
from poa_ds.methods.finetune import Finetune
from poa_ds.model.classifier import Classified
from poa_ds.model.space import Subnet
from poa_ds.model.swin.plain import Swin
from poa_ds.recipe import load
from poa_ds.recipe.backbone import backbone
from poa_ds.system.errors import UsageError
from tests.evaluate.test_finetune import SETTINGS
from tests.support.teachers import RECIPE, make_run_with_heads, make_teacher

RESNET = {
    "backbone": {
        "name": "resnet",
        "width": {"min": 16, "max": 32, "step": 16},
        "stages": [[1, 1], [1, 1], [1, 2], [1, 1]],
        "patch_size": 4,
        "norm_groups": 4,
    },
    "crops": {"global_size": 32, "local_size": 32},
}
SWIN = {
    "backbone": {
        "name": "swin",
        "width": {"min": 16, "max": 32, "step": 16},
        "stages": [[1, 1], [1, 1], [2, 5], [1, 1]],
        "patch_size": 2,
        "head_dim": 16,
        "window": 2,
    },
    "crops": {"global_size": 32, "local_size": 32},
}


def begun(run: Path, size: str) -> tuple[Classified, torch.Tensor, torch.Tensor]:
    """(the network that a size begins as, its features, those of the slice) of two images."""
    model, recipe, _ = load_teacher(run)
    subnet = model.space.parse(size)
    source = f"{run}:{subnet}"
    network = Classified(
        backbone(Job(recipe, subnet, source, SETTINGS, "train", "val", 3).recipe("")), 3
    ).eval()
    start.begin(Networks(network), source)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network, network.backbone(images, subnet), model(images, subnet)


def test_every_size_of_a_resnet_begins_as_what_it_is_in_the_run(tmp_path: Path) -> None:
    """Float32: a factor is in the weights here, and beside them there."""
    run = make_teacher(tmp_path / "run", **RESNET)
    for size in ("16x1-1-1-1", "16x1-1-2-1", "32x1-1-1-1", "32x1-1-2-1"):
        network, found, wanted = begun(run, size)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        assert network.classifier.in_features == 64 * (2 + 4 + 8)
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
        own = network.backbone
        there = load_teacher(run)[0].parameter_count(own.space.intact)
        assert own.parameter_count(own.space.intact) == there


def test_a_readout_of_a_resnet_is_the_means_of_its_last_three_stages(tmp_path: Path) -> None:
    network, _, _ = begun(make_teacher(tmp_path / "run", **RESNET), "16x1-1-2-1")
    maps, images = [], torch.randn(2, 3, 32, 32)
    for block in (1, 3, 4):
        network.backbone.blocks[block].register_forward_hook(lambda *x: maps.append(x[2][0]))
    found = network.backbone.readout(images, network.size)
    torch.testing.assert_close(found, torch.cat([x.mean((2, 3)) for x in maps], 1))


@pytest.mark.parametrize("size", ["16x2", "16x3", "16x5", "32x3", "32x5"])
def test_every_size_of_a_swin_begins_as_what_it_is_in_the_run_and_is_taken_out_again(
    tmp_path: Path, size: str
) -> None:
    """It keeps the norm of all projected channels, and its own blocks' shifts: of five blocks three
    are the first, third and fourth.
    """
    run = make_teacher(tmp_path / "run", **SWIN)
    network, found, wanted = begun(run, size)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    model, own = load_teacher(run)[0], network.backbone
    subnet = own.space.intact
    state, of_run = extract(own, subnet), extract(model, subnet)
    assert state.arguments == of_run.arguments and set(state) == set(of_run)
    assert own.parameter_count(subnet) == sum(t.numel() for t in state.values())
    plain = Swin(**state.arguments)
    plain.load_state_dict(dict(state))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    (plain.eval()(images) ** 2).sum().backward()
    (own.readout(images, subnet) ** 2).sum().backward()
    for name, other in {
        "embed.patch.proj.weight": "embed.proj.weight",
        "embed.patch.norm.weight": "embed.norm.weight",
        "norm.weight": "norm.weight",
    }.items():
        grads = own.get_parameter(name).grad, plain.get_parameter(other).grad
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)
    shifts = [block.attn.shift > 0 for block in own.blocks]
    kept = model.members(subnet)
    assert shifts == [model.blocks[index].attn.shift > 0 for index in kept]


def test_what_a_swin_is_told_of_its_blocks_and_patches_must_fit() -> None:
    swin = {**SWIN["backbone"], "projected": 16, "shifted": [True]}
    with pytest.raises(UsageError, match=r"backbone.projected 16: the widest size has 32") as error:
        load.from_dict({**RECIPE, **SWIN, "backbone": swin})
    assert "backbone.shifted says it of 1 blocks: stage 3 has 5" in str(error.value)


@pytest.mark.parametrize(
    ("changed", "size"),
    [
        ({}, "32x2"),
        ({"backbone": RECIPE["backbone"] | {"input_scale": 0.5}}, "32x3"),
        (SWIN, "16x3"),
        (RESNET, "16x1-1-1-1"),
    ],
)
def test_a_classifier_stands_on_the_head_s_first_layer_as_the_size_has_it(
    tmp_path: Path, changed: dict, size: str
) -> None:
    """Against the elastic layer of the run's own head; gradients of the images too."""
    torch.manual_seed(0)
    run, networks = make_run_with_heads(tmp_path / "run", **changed)
    recipe, subnet = load.from_dict({**RECIPE, **changed}), Subnet.read(size)
    start_at = f"{run}:{size}"
    made = Job(recipe, subnet, start_at, SETTINGS, "train", "val", 3, projected=24).recipe("")
    both = Finetune(made).networks()
    assert start.begin(both, start_at) == ""
    network, found = both.student.eval(), []
    network.classifier.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    network(images)
    feature = networks.teacher.backbone(images, subnet)[:, :1]
    head = networks.teacher.heads[0].first
    wanted = torch.nn.functional.gelu(torch.cat(head.of_tokens(feature[:, 0])))
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-4)
    down = torch.randn(wanted.shape)
    grads = [torch.autograd.grad((x * down).sum(), images)[0] for x in (found[0], wanted)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-3)
    for name, (parameter, average) in both.averaged().items():
        assert torch.equal(parameter, average), name
    options = made.optimizer
    assert lr_factor("projection.weight", depth=2, layer_decay=0.5, patch_embed_factor=1.0) == 1
    assert options.decayed == "matrices" and is_matrix("projection.weight", head.weight)

"""Linear classifiers of Swins and ResNets: the means of their stages."""

from pathlib import Path

import pytest
import torch

from poa_ds.evaluate.features import READS, STAGES, kinds, numbers_read, random_weights
from poa_ds.export.extract import extract
from poa_ds.recipe import load
from poa_ds.system.errors import UsageError
from tests.evaluate.test_linear_command import linear, rows, run
from tests.support.teachers import make_teacher

__all__ = ["run"]  # a fixture

WIDTHS = {"width": {"min": 16, "max": 32, "step": 16}, "patch_size": 4}
STAGED = {
    "swin": {
        "name": "swin",
        **WIDTHS,
        "stages": [[1, 1], [1, 1], [1, 2], [1, 1]],
        "head_dim": 16,
        "window": 4,
    },
    "resnet": {
        "name": "resnet",
        **WIDTHS,
        "stages": [[1, 1], [1, 1], [1, 2], [1, 1]],
        "norm_groups": 4,
    },
}


@pytest.mark.parametrize("kind", STAGED)
@torch.no_grad()
def test_of_stages_the_means_of_the_extracted_network_s_maps_are_read_out(kind: str) -> None:
    """The plain network takes its maps in code of its own; the last mean is `forward`'s."""
    crops = {"global_size": 64, "local_size": 32}
    recipe = load.from_dict({"backbone": STAGED[kind], "crops": crops})
    model, images = random_weights(recipe).eval(), torch.randn(2, 3, 64, 64)
    for subnet in (model.space.smallest, model.space.intact):
        found = READS[STAGES](model, images, subnet)
        maps = extract(model, subnet).network().eval().maps(images)
        wanted = torch.cat([x.mean((2, 3)) for x in maps], 1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
        columns = kinds(model, subnet, STAGES)
        torch.testing.assert_close(found[:, columns["1 stage"]], model(images, subnet)[:, 0])
        assert found[:, columns["4 stages"]].shape[1] == numbers_read(model, subnet, STAGES, 64, 64)


def test_of_a_backbone_with_stages_their_means_are_learnt_from(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    make_teacher(run, step=4, backbone=STAGED["resnet"])
    size = ("--sizes", "16x1-1-1-1", "--crops", "centre")
    assert linear(run, *size) == 0
    for row in rows(run):
        assert row.setting["kind"] in ("1 stage", "4 stages")
        assert row.protocol["taps"] == "stages" and not row.protocol["published"]
    assert linear(run, *size, "--taps", "last4") == UsageError.exit_status
    assert "--taps last4: of a resnet the means of its four stages" in capsys.readouterr().err

"""ZeRO-3 on two real ranks: what stays of the gathered weights between forward and backward."""

from pathlib import Path

import pytest

from tests.distributed.programs.launch import launch
from tests.distributed.test_backbones_ranks import BACKBONES


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["vit", "swin"])
def test_gathered_weights_are_freed_between_forward_and_backward(
    backbone: str, tmp_path: Path
) -> None:
    recipe = {"backbone": BACKBONES[backbone]} if backbone in BACKBONES else {}

    def blocks(kernels: str) -> dict[str, int]:
        out = tmp_path / kernels
        return launch("tests.distributed.programs.gathered", 2, out, kernels=kernels, recipe=recipe)

    ours, plain = blocks("auto"), blocks("reference")
    assert plain["gathered"] == ours["gathered"] > 0
    assert plain["held"] > 0.99 * plain["gathered"]
    assert ours["held"] < 0.02 * ours["gathered"]  # vectors: norms and LayerScale

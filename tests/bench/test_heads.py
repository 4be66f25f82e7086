"""Heads and losses alone: all ways agree, and some rows at a time need less memory."""

from pathlib import Path

import pytest
import yaml

from poa_ds.bench.heads import PARTS, WHOLE
from poa_ds.cli import main
from tests.bench.test_step import TINY


@pytest.mark.slow  # three processes
def test_heads_and_losses_alone_agree_and_are_measured(tmp_path: Path, capfd) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    # 30 images: 300 class rows against 100,000 prototypes are large
    words = [
        "heads.prototypes=[40, 100000]",
        "heads.separate_ibot=true",
        "heads.bottleneck=8",
        "batch.images_per_slot=30",
    ]
    assert main(["bench", "heads", "--config", str(recipe), *words]) == 0
    rows = {line[:24].strip(): line.split() for line in capfd.readouterr().out.splitlines()}
    whole, parts = (float(rows[f"{way}"][-1]) for way in (WHOLE, PARTS))
    assert 0 < parts < 0.6 * whole

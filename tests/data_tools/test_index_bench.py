"""Very many samples: the figures exist, and a worker's memory does not grow with the data set."""

import re
from pathlib import Path

import pytest

from data_tools import index_bench
from tests.support.shards import run


def test_the_figures_are_printed_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(index_bench, "--samples", 3000, "--workers", "1,2", "--place", tmp_path) == 0
    out = capsys.readouterr().out
    assert "3,000 samples" in out and "index build, one process" in out
    assert re.findall(r"^(\d) workers: [\d.]+ MiB", out, re.M) == ["1", "2"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_worker_owns_no_copy_of_the_index(tmp_path: Path) -> None:
    """The index has 2.3 MiB; a reader's own memory grows by little, however many there are."""
    index_bench._make(tmp_path, 120_000)
    index_bench.index_folder(tmp_path, None, workers=1)
    for count in (1, 4):
        for memory in index_bench._readers(tmp_path, count):
            assert memory.private < 2

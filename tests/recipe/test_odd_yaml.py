"""YAML that was made to hurt, or by mistake: refused at once, in a message of ordinary length."""

import time
from itertools import pairwise
from pathlib import Path

import pytest

from poa_ds.recipe import load
from poa_ds.system.errors import UsageError
from tests.recipe.test_load import written

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{x}: &{x} [{', '.join(9 * [f'*{y}'])}]\n" for y, x in pairwise("abcdefghijklmn")
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{x}: &{x} {{!!merge '<<': [{', '.join(9 * [f'*{y}'])}]}}\n" for y, x in pairwise("abcdefghi")
)


@pytest.mark.parametrize(
    "text",
    [
        f"{BOMB}batch: *n\n",
        f"{BOMB}output_dir: *n\n",
        f"{BOMB}backbone: {{names: *n, stages: *n}}\n",
        MERGED,
        "&a [*a]: 1\n",
        "batch: &a {slots: *a}\n",
        "[" * 500_000,
        "a: " + "{a: " * 50_000,
        "seed: !!int abc\n",
        "seed: !!float abc\n",
        "compile: !!bool maybe\n",
        "seed: !!timestamp never\n",
        "seed: !!binary =\n",
        "seed: !!python/object:os.system {}\n",
        "seed: " + "9" * 5000,
        "seed: " + "9" * 40,
        "schedule: {epochs: " + "9" * 400 + "}",
        "? [a, b]\n: 1\n",
        "seed: !<tag> 3\n",
        "seed: " + "x" * 100_000,
        "x" * 100_000 + ": 1",
        "a" * 1_000_001,
        "\0\0",
        "---\na: 1\n---\nb: 2\n",
        "%YAML 9.9\n---\nseed: 1",
        "%TAG ! tag:x:\n---\nseed: !y 1",
    ],
    ids=range(26),
)
def test_a_recipe_of_any_kind_is_refused_at_once_in_a_short_message(
    text: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        load.recipe(written(tmp_path, text))
    assert len(str(error.value)) < 2000 and time.monotonic() - started < 5
    with pytest.raises(UsageError):
        load.recipe(None, [f"batch={text}"])


def test_anchors_are_as_good_as_what_they_stand_for(tmp_path: Path) -> None:
    found = load.recipe(written(tmp_path, "seed: &n 7\nlog_every: *n\n"))
    assert (found.seed, found.log_every) == (7, 7)

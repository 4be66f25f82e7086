"""The tables of `poa-ds bench methods`: what they may say, and whose runs they make."""

from pathlib import Path

import pytest

from poa_ds.bench.methods import table
from poa_ds.bench.methods.runs import Settings, plan
from poa_ds.bench.methods.table import Table
from poa_ds.recipe import derived
from poa_ds.system.errors import UsageError

TWO = "recipe: photos\nagainst: a\nsizes: [32x2]\nvariants:\n  "


def _read(text: str, folder: Path) -> Table:
    (folder / "mine.yaml").write_text(text)
    return table.read(str(folder / "mine.yaml"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sizes: [32x2]", "variants"),
        ("recipe: photos\nagainst: b\nsizes: [32x2]\nvariants: {a: {}}", "against 'b' is none"),
        ("recipe: photos\nagainst: a\nvariants: {a: {}}", "sizes is empty"),
        ("against: a\nsizes: [32x2]\nvariants: {a: {}}", "a has no recipe"),
        ("recipe: photos\nagainst: a\nsizes: [32x2]\nvariants: {a: {alon: true}}", "alone"),
        ("recipe: photos\nagainst: a\nsizes: [32x2]\nvariants: {a/b: {}}", "letters"),
        (f"{TWO}a: {{teacher: a}}", "comes before itself: a <- a"),
        (f"{TWO}a: {{start: b}}\n  b: {{teacher: a}}", "comes before itself: a <- b <- a"),
        (f"{TWO}a: {{}}\n  b: {{teacher: c}}", "teacher 'c' is no variant"),
        (f"{TWO}a: {{}}\n  b: {{alone: true, teacher: a}}", "alone excludes teacher"),
        (f"{TWO}a: {{alone: true}}\n  b: {{start: a}}", "start 'a' must be a variant with one run"),
        (f"{TWO}a: {{rebase: sort}}", "rebase sort without start"),
        (f"{TWO}a: {{}}\nequal: steps", "equal"),
        (f"{TWO}a: {{sizes: [32x2, 48x2]}}", "a.sizes 48x2: not among the table's"),
    ],
)
def test_a_mistake_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        _read(text, tmp_path)


def test_a_variant_has_runs_and_figures_of_its_own_sizes_alone(tmp_path: Path) -> None:
    """The others keep all sizes of the table; what it shares with them is as without it."""
    text = "recipe: photos\nagainst: poa\nsizes: [32x2, 64x3, 96x4]\nvariants:\n  poa: {}\n"
    read = _read(
        text + "  two: {alone: true, sizes: [32x2, 96x4]}\n  all: {alone: true}\n", tmp_path
    )
    found = plan(read, Settings(tmp_path, "data", 2850, (0,), tuple(read.variants), 100))
    assert [(run.name, run.sizes) for run in found] == [
        ("poa_s0", ("32x2", "64x3", "96x4")),
        *((f"two_{size}_s0", (size,)) for size in ("32x2", "96x4")),
        *((f"all_{size}_s0", (size,)) for size in ("32x2", "64x3", "96x4")),
    ]
    for run in found[1:]:
        assert [str(subnet) for subnet in derived.space(run.recipe).subnets()] == [*run.sizes]
    assert found[0].recipe.evaluation.sizes == ("32x2", "64x3", "96x4")

"""Which queries were right: kept bit for bit, and what it says of a difference."""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from poa_ds.evaluate import results, right
from poa_ds.evaluate.knn import right_row
from poa_ds.evaluate.neighbours import Answers
from poa_ds.evaluate.right import RightRow, paired
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError


def protocol(queries: int) -> dict:
    return {"queries": {"images": queries}, "crop": 32}


@pytest.mark.parametrize("queries", [1, 7, 8, 9, 3800])
def test_what_is_kept_is_read_again(queries: int, tmp_path: Path) -> None:
    path, draw = tmp_path / "knn_right.jsonl", np.random.default_rng(queries)
    bits = {f"{w}x2": draw.random(queries) < 0.7 for w in (32, 48)}
    answered = {Subnet.read(s): Answers({20: torch.from_numpy(b)}) for s, b in bits.items()}
    nothing = torch.zeros(queries, dtype=torch.bool)
    answered[Subnet(64, 2)] = Answers({20: nothing}, finite=False)
    results.append(path, right_row(5, protocol(queries), 20, answered))
    found = right.at(path, 5, 20, protocol(queries))
    assert found.keys() == bits.keys()
    assert all(np.array_equal(found[size], bits[size]) for size in bits)
    for other in ((6, 20, protocol(queries)), (5, 10, protocol(queries)), (5, 20, {})):
        assert right.at(path, *other) == {}
    assert len(path.read_bytes()) < 300 + 2 * queries / 6  # a bit each, as text


def test_the_later_row_of_a_step_counts_and_later_steps_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "knn_right.jsonl"
    for step, value in ((5, False), (5, True), (9, True)):
        results.append(path, RightRow.of(step, protocol(3), 20, {"32x2": np.full(3, value)}))
    results.keep_through(path, 5, RightRow.from_json)
    assert right.at(path, 5, 20, protocol(3))["32x2"].all()
    assert right.at(path, 9, 20, protocol(3)) == {}
    row = json.loads(path.read_text().splitlines()[0])
    row["protocol"]["queries"]["images"] = 9
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="line 1 is damaged: 8 bits for 9 queries"):
        right.at(path, 5, 20, protocol(9))


def test_a_paired_difference_by_hand() -> None:
    """Of 10 queries the first gets 3 that the second does not, the second 1 that it does not."""
    first = np.array([1, 1, 1, 0, 1, 1, 1, 1, 0, 0], bool)
    second = np.array([0, 0, 0, 1, 1, 1, 1, 1, 0, 0], bool)
    gap, error = paired(first, second)
    variance = ((3 + 1) - (3 - 1) ** 2 / 10) / 10
    assert gap == pytest.approx(20) and error == pytest.approx(196 * sqrt(variance / 10))
    assert paired(first, first) == (0, 0)
    apart = 1.96 * sqrt(sum(p * (100 - p) for p in (70, 50)) / 10)
    assert error < apart  # what both get right, or neither, makes no difference


def test_the_error_covers_the_truth_as_often_as_it_says() -> None:
    """2,000 times: correlated answers of 400 queries; 95 % of the intervals hold the difference."""
    draw, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        hard = draw.random(400)
        first, second = (hard + 0.2 * draw.normal(size=400) < level for level in (0.75, 0.70))
        gap, error = paired(first, second)
        hits += abs(gap - TRUTH) <= error
    assert 0.935 < hits / 2000 < 0.965


def _chance(level: float) -> float:
    """Of hard + 0.2 x normal < level, hard uniform: by a fine sum."""
    hard = (np.arange(200_000) + 0.5) / 200_000
    z = torch.from_numpy((level - hard) / 0.2)
    return float(torch.special.ndtr(z).mean())


TRUTH = 100 * (_chance(0.75) - _chance(0.70))

"""knn_right.jsonl: which queries each size got right, a bit each, beside knn.jsonl.

Two accuracies on the same queries differ by those that one got right and the other did not: the
error of that difference is smaller than their own errors say, as most queries are easy for both or
hard for both. Kept for the k that is reported.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from poa_ds.evaluate import results
from poa_ds.evaluate.neighbours import Answers
from poa_ds.model.space import Subnet
from poa_ds.system import json_text

Right = Mapping[str, np.ndarray]  # size -> (Q,) bool, in the order of the queries


@dataclass(frozen=True)
class RightRow:
    """Of one evaluation, as the row of knn.jsonl with this step and protocol."""

    step: int
    protocol: Mapping[str, Any]
    k: int
    right: Right

    def to_json(self) -> str:
        bits = {size: _written(right) for size, right in self.right.items()}
        row = {"step": self.step, "protocol": self.protocol, "k": self.k, "right": bits}
        return json.dumps(row)

    @classmethod
    def from_json(cls, line: str) -> "RightRow":
        row = json_text.parse_object(line, step=int, protocol=dict, k=int, right=dict)
        count = row["protocol"]["queries"]["images"]
        right = {size: _read(text, count) for size, text in row["right"].items()}
        return cls(row["step"], row["protocol"], row["k"], right)


def row(
    step: int, protocol: Mapping[str, Any], k: int, answered: Mapping[Subnet, Answers]
) -> RightRow:
    """Of the sizes that have finite features."""
    right = {str(s): a.right[k].numpy() for s, a in answered.items() if a.finite and k in a.right}
    return RightRow(step, protocol, k, right)


def _written(right: np.ndarray) -> str:
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def _read(text: str, count: int) -> np.ndarray:
    packed = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    if len(packed) != -(-count // 8):
        raise ValueError(f"{8 * len(packed)} bits for {count} queries")
    return np.unpackbits(packed, count=count).astype(bool)


def at(path: Path, step: int, k: int, protocol: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Size -> its last row of that step, k and protocol; {} without the file.

    UserError: a line is damaged.
    """
    rows = results.lines(path, RightRow.from_json)
    found: dict[str, np.ndarray] = {}
    for row in rows:
        if (row.step, row.k) == (step, k) and row.protocol == protocol:
            found |= row.right
    return found


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(first's accuracy minus second's, half of its 95 % interval), in points."""
    difference = first.astype(float) - second.astype(float)
    error = 196 * difference.std() / sqrt(len(difference))
    return float(100 * difference.mean()), float(error)

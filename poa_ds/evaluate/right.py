"""knn_right.jsonl: which queries each size got right, a bit each, beside knn.jsonl.

Two accuracies on the same queries differ by those that one got right and the other did not: the
error of that difference is smaller than their own errors say, as most queries are easy for both or
hard for both. Kept for the k that is reported.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from poa_ds.evaluate import results
from poa_ds.evaluate.results import Accuracies
from poa_ds.system import json_text

Right = Mapping[str, np.ndarray]  # size -> (Q,) bool, in the order of the queries


@dataclass(frozen=True)
class RightRow:
    """Of one evaluation, as the row of knn.jsonl with this step and protocol.

    packed: size -> a bit for each query, in base64: a file has many, of which few are looked at.
    """

    step: int
    protocol: Mapping[str, Any]
    k: int
    packed: Mapping[str, str]

    @classmethod
    def of(cls, step: int, protocol: Mapping[str, Any], k: int, right: Right) -> "RightRow":
        packed = {s: base64.b64encode(np.packbits(r).tobytes()).decode() for s, r in right.items()}
        return cls(step, protocol, k, packed)

    @property
    def right(self) -> dict[str, np.ndarray]:
        """Size -> (Q,) bool."""
        count, bits = self.protocol["queries"]["images"], {}
        for size, text in self.packed.items():
            packed = np.frombuffer(base64.b64decode(text), np.uint8)
            bits[size] = np.unpackbits(packed, count=count).astype(bool)
        return bits

    def to_json(self) -> str:
        row = {"step": self.step, "protocol": self.protocol, "k": self.k, "right": self.packed}
        return json.dumps(row)

    @classmethod
    def from_json(cls, line: str) -> "RightRow":
        row = json_text.parse_object(line, step=int, protocol=dict, k=int, right=dict)
        count = row["protocol"]["queries"]["images"]
        for text in row["right"].values():
            if (found := len(base64.b64decode(text, validate=True))) != -(-count // 8):
                raise ValueError(f"{8 * found} bits for {count} queries")
        return cls(row["step"], row["protocol"], row["k"], row["right"])


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


def of_measured(
    path: Path, step: int, k: int, measured: Mapping[str, tuple[Accuracies, Mapping]]
) -> Right:
    """The same of what results.newest has found; {} where that is of several protocols."""
    protocols = [protocol for _, protocol in measured.values()]
    if not protocols or any(protocol != protocols[0] for protocol in protocols):
        return {}
    return at(path, step, k, protocols[0])


def between(right: Right, sizes: Sequence[str]) -> Callable[[int, int], float | None]:
    """The error of the difference of two of the sizes, by their numbers; None: not known."""
    answers = [right.get(size) for size in sizes]

    def error(number: int, other: int) -> float | None:
        first, second = answers[number], answers[other]
        return None if first is None or second is None else paired(first, second)[1]

    return error


def paired(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """(first's accuracy minus second's, half of its 95 % interval), in points."""
    difference = first.astype(float) - second.astype(float)
    error = 196 * difference.std() / sqrt(len(difference))
    return float(100 * difference.mean()), float(error)

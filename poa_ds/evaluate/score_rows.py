"""evaluations.jsonl: what evaluations but k-NN found and keep, a number per row, only appended.

A long format: a new kind of evaluation or metric needs no new reader. k-NN stays in knn.jsonl.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from poa_ds.evaluate import results
from poa_ds.system import json_text

OF_RANDOM, OF_PIXELS = "_random_weights", "_raw_pixels"  # behind a metric: it is of a floor
CORRUPTED = "corrupted"  # the set of all corrupted images
BEST_ON_VAL = "val"  # chosen by the very images that it is measured on, as is usually published


@dataclass(frozen=True)
class ScoreRow:
    """One metric of one size on one set of images.

    value, error: in percent, and half of its 95 % interval in points, None where it is not known.
    chosen_by: on what a setting was chosen among several; empty: nothing was. setting: what was
    chosen or found on the way. protocol: every number that the value depends on, the same for all
    sizes. torch: the version that computed it.
    """

    kind: str
    step: int
    size: str
    metric: str
    value: float
    error: float | None
    set: str
    chosen_by: str
    setting: Mapping[str, Any]
    seconds: float
    protocol: Mapping[str, Any]
    torch: str

    @property
    def name(self) -> str:
        """What it measures in a word, such as linear_top1; the same for what may be compared."""
        parts = [self.kind, self.metric]
        parts += [self.set] if self.set != "val" else []
        parts += ["best_on_val"] if self.chosen_by == BEST_ON_VAL else []
        return "_".join(parts)

    @property
    def is_error(self) -> bool:
        """Whether less is better."""
        return self.set == CORRUPTED and not self.metric.startswith("top1")

    @property
    def floor(self) -> str:
        """OF_RANDOM or OF_PIXELS, empty for what was trained."""
        return next((end for end in (OF_RANDOM, OF_PIXELS) if self.metric.endswith(end)), "")

    @property
    def floor_of(self) -> str:
        """The name of what it is a floor of."""
        return replace(self, metric=self.metric.removesuffix(self.floor)).name

    @property
    def protocol_id(self) -> str:
        return identity(self.protocol)

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"protocol_id": self.protocol_id})

    @classmethod
    def from_json(cls, line: str) -> "ScoreRow":
        words = dict.fromkeys(("kind", "size", "metric", "set", "chosen_by", "torch"), str)
        kinds = {"step": int, "setting": dict, "protocol": dict, "seconds": float}
        row = json_text.parse_object(line, **words, **kinds, value=float)
        if row["error"] is not None:
            json_text.numbers({"error": row["error"]})
        return cls(**{field.name: row[field.name] for field in fields(cls)})


def identity(protocol: Mapping[str, Any]) -> str:
    """Twelve letters that are the same for the same protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def read(path: Path) -> list[ScoreRow]:
    """All rows, [] without the file; a last line that a kill cut short does not count."""
    return results.lines(path, ScoreRow.from_json)


def newest(rows: Sequence[ScoreRow], step: int, name: str) -> dict[str, ScoreRow]:
    """Size -> its last row of that step and name."""
    return {row.size: row for row in rows if (row.step, row.name) == (step, name)}


def describe(protocol: Mapping[str, Any]) -> str:
    """The protocol in a few words and its letters."""
    parts = [
        f"{protocol[name]['images']:,} {what}"
        for name, what in (("val", "images"), ("train", "to learn from"))
        if name in protocol
    ]
    if left_out := protocol.get("val", {}).get("unknown_classes"):
        parts.append(f"{left_out['images']:,} of {left_out['classes']:,} unknown classes left out")
    parts += [f"crop {protocol['crop']} of {protocol['resize']}"] if "crop" in protocol else []
    parts += [str(protocol["precision"])] if "precision" in protocol else []
    return f"{', '.join(parts)} (protocol {identity(protocol)})"

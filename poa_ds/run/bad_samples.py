"""bad_samples.jsonl: the damaged images that a run has replaced, and in which step, of all ranks.

{"step": 40, "shard": "train/shard-000003.tar", "key": "n01440764_17", "cause": "damaged: ..."}
"""

import json
from collections.abc import Iterable
from pathlib import Path

from poa_ds.data.batch import Bad
from poa_ds.system.json_text import parse_object
from poa_ds.track.metrics_file import lines_with_steps, rewrite


def append(path: Path, step: int, bad: Iterable[Bad]) -> None:
    """Add one line per damaged image; in a single write, because every rank appends."""
    rows = [{"step": step, "shard": shard, "key": key, "cause": cause} for shard, key, cause in bad]
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def keep_through(path: Path, step: int) -> None:
    """Drop the rows after `step`: a run that goes on from there meets the same images again."""
    if path.exists():
        rows = lines_with_steps(path, lambda line: parse_object(line, step=int))
        rewrite(path, [row for row in rows if row["step"] <= step])

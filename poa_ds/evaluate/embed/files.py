"""What `poa-ds embed` writes: parts while it works, and in the end one folder with every size."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save, save_file

from poa_ds.evaluate.embed.sources import Images
from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_bytes, replace_text, whole_folder
from poa_ds.system.json_text import parse

Format = Literal["safetensors", "npy", "parquet"]
ABOUT, ROWS = "embedding.json", "rows.jsonl"


@dataclass(frozen=True)
class Parts:
    """Rows that are done, beside the folder that they will fill: a killed command goes on there."""

    folder: Path

    @classmethod
    def beside(cls, out: Path) -> "Parts":
        out = out.absolute()
        return cls(out.with_name(f".{out.name}.parts"))

    def begin(self, setting: Mapping[str, Any]) -> None:
        """Make the folder, or go on in it; UserError where its parts are of another setting."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ABOUT
        if not path.exists():
            replace_text(path, json.dumps(setting))
        elif parse(path.read_bytes()) != json.loads(json.dumps(setting)):
            raise UserError(
                f"{self.folder} holds parts of an embedding with other images or options: "
                "name another --out, or delete it"
            )

    def has(self, span: range) -> bool:
        return self._path(span).exists()

    def write(
        self, span: range, rows: Mapping[str, np.ndarray], damaged: Mapping[int, str]
    ) -> None:
        """Keep the rows (n, C) or (n, N, C) of each size, and which images were damaged by what."""
        told = {"damaged": json.dumps({str(row): cause for row, cause in damaged.items()})}
        replace_bytes(self._path(span), save(dict(rows), metadata=told))

    def damaged(self, spans: Sequence[range]) -> dict[int, str]:
        """Row -> cause, of all parts."""
        found = {}
        for span in spans:
            with safe_open(self._path(span), framework="np") as part:
                found |= json.loads(part.metadata()["damaged"])
        return {int(row): cause for row, cause in found.items()}

    def whole(self, size: str, spans: Sequence[range]) -> np.ndarray:
        """(n, C) or (n, N, C) of one size, from all parts."""
        found = []
        for span in spans:
            with safe_open(self._path(span), framework="np") as part:
                found.append(part.get_tensor(size))
        return np.concatenate(found)

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _path(self, span: range) -> Path:
        return self.folder / f"rows{span.start:010d}.safetensors"


def is_there(out: Path, setting: Mapping[str, Any]) -> bool:
    """Whether OUT holds this very embedding; UserError where it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    about = out / ABOUT
    if about.is_file() and parse(about.read_bytes()).get("setting") == json.loads(
        json.dumps(setting)
    ):
        return True
    raise UserError(f"--out {out} exists and is another thing: name another, or delete it")


def publish(
    out: Path,
    parts: Parts,
    spans: Sequence[range],
    images: Images,
    *,
    setting: Mapping[str, Any],
    style: Format,
) -> dict[str, int]:
    """Write OUT whole and remove the parts; size -> rows that are not finite, but for damage.

    Rows stand in the order of the images; those of damaged ones are NaN.
    """
    damaged = parts.damaged(spans)
    keys = [images.key(row) for row in range(len(images))]
    labels = np.array([images.label(row) for row in range(len(images))], np.int64)
    names = [images.classes[label] if label >= 0 else None for label in labels]
    strange = {}
    with whole_folder(out) as partial:
        for size in setting["sizes"]:
            rows = parts.whole(size, spans)
            bad = ~np.isfinite(rows.reshape(len(rows), -1)).all(1)
            bad[list(damaged)] = False
            if bad.any():
                strange[size] = int(bad.sum())
            _write(partial / f"{size}.{style}", rows, keys, labels, names)
        (partial / ROWS).write_text("".join(_lines(keys, names, damaged)))
        about = {
            "setting": setting,
            "files": {size: f"{size}.{style}" for size in setting["sizes"]},
            "classes": list(images.classes),
            "damaged": len(damaged),
            "not_finite": strange,
        }
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    parts.remove()
    return strange


def _write(
    path: Path,
    rows: np.ndarray,
    keys: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str | None],
) -> None:
    """One size, in the format that the end of its name says."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".safetensors":
        save_file({"features": rows, "labels": labels}, path)
    else:
        import pyarrow  # a second; needed here only
        import pyarrow.parquet

        length = math.prod(rows.shape[1:])
        vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.reshape(-1)), length)
        columns = {"key": keys, "label": pyarrow.array(names, pyarrow.string())}
        pyarrow.parquet.write_table(pyarrow.table({**columns, "features": vectors}), path)


def _lines(
    keys: Sequence[str], names: Sequence[str | None], damaged: Mapping[int, str]
) -> Iterator[str]:
    """rows.jsonl: what each row is of, and why one is NaN."""
    for row, (key, name) in enumerate(zip(keys, names, strict=True)):
        cause = {"damaged": damaged[row]} if row in damaged else {}
        yield json.dumps({"key": key, "label": name} | cause) + "\n"

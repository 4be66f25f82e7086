"""Features of any images in memory: what `poa-ds embed` writes, for Python."""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from safetensors.numpy import load_file

from poa_ds.data.store.manifest import MANIFEST
from poa_ds.evaluate.embed import command
from poa_ds.evaluate.embed.files import ABOUT, ROWS
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError
from poa_ds.system.paths import expanded, is_address


@dataclass(frozen=True)
class Features:
    """Rows in the order of the images; those of damaged images are NaN.

    sizes: WIDTHxDEPTH -> (n, C) float32. keys: what names each image. labels: (n,) the number of
    its class among `classes`, -1 for none.
    """

    sizes: dict[str, np.ndarray]
    keys: list[str]
    labels: np.ndarray
    classes: list[str]

    def __getitem__(self, size: str) -> np.ndarray:
        return self.sizes[size]


def embed(
    run: str | os.PathLike,
    images: str | os.PathLike,
    sizes: str | Sequence[str] = (),
    *,
    out: str | os.PathLike | None = None,
    what: str = "cls",
    normalise: bool = False,
    crop: int | str | None = None,
    batch_size: int | None = None,
    workers: int = 0,
) -> Features:
    """The features of images by sizes of a run: each image is decoded once for all of them.

    images: a folder of them, a list of their paths, or shards. sizes: names or WIDTHxDEPTH, "all";
    the named ones where none are asked for. out: a folder that keeps them, for `poa-ds` and for
    the next call. what: cls, or cls+avg with the mean of the patches. normalise: rows of unit
    length. crop: pixels that are seen, or "ROWSxCOLUMNS"; None: as the recipe's
    evaluation. UserError: no such run, images or size; features that are not finite.
    """
    images = expanded(str(images))
    with TemporaryDirectory(prefix="poa-embed-") as place:
        folder = Path(place) / "embedding" if out is None else Path(expanded(str(out)))
        words = [str(run), _option(images), str(images), "--out", str(folder), "--what", what]
        words += ["--workers", str(workers)]
        words += ["--crop", str(crop)] if crop is not None else []
        words += ["--batch-size", str(batch_size)] if batch_size is not None else []
        words += ["--sizes", sizes if isinstance(sizes, str) else ",".join(sizes)] if sizes else []
        parser = argparse.ArgumentParser(
            prog="poa_ds.embed", exit_on_error=False, allow_abbrev=False
        )
        command.add_arguments(parser)
        try:
            args = parser.parse_args([*words, *["--normalise"] * normalise])
        except argparse.ArgumentError as error:
            raise UserError(f"poa_ds.embed: {error}") from error
        status = command.run(args)
        if status:
            raise UserError(f"poa_ds.embed: ended with status {status}, see what it has said")
        return _read(folder)


def _option(images: str | os.PathLike) -> str:
    """Which option of `poa-ds embed` takes such images."""
    place = Path(images)
    if is_address(str(images)) or (place / MANIFEST).is_file():
        return "--shards"
    return "--list" if place.is_file() else "--images"


def _read(folder: Path) -> Features:
    about = json.loads((folder / ABOUT).read_bytes())
    files = {str(Subnet.read(label)): folder / name for label, name in about["files"].items()}
    found = {size: load_file(path) for size, path in files.items()}
    lines = (folder / ROWS).read_text("utf-8").splitlines()
    return Features(
        {size: part["features"] for size, part in found.items()},
        [json.loads(line)["key"] for line in lines],
        next(iter(found.values()))["labels"],
        about["classes"],
    )

"""What `poa-ds import` reads: a file, a folder, or a model of timm's on the hub."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from poa_ds.export import hub
from poa_ds.export.import_poa import read_checkpoint
from poa_ds.methods.frozen_timm import PREFIX
from poa_ds.system import paths
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object

PARTS = ("teacher", "model", "state_dict")  # of a checkpoint that has more than a state dict


@dataclass(frozen=True)
class Source:
    """weights: a file. pixels: mean and std, as far as they are told. licence: a text, or empty.

    called: the short name that the hub has for the licence, or empty.
    """

    weights: Path
    pixels: dict[str, Any]
    licence: str
    called: str = ""


def named(text: str) -> str:
    """The type of the argument SOURCE: timm:NAME, or a path, expanded."""
    return text if text.startswith(PREFIX) else str(paths.path(text))


def add_download(parser: argparse.ArgumentParser) -> None:
    """The option that allows timm:NAME to come from the network."""
    parser.add_argument(
        "--download",
        action="store_true",
        help="fetch timm:NAME from the hub if it is not on this machine; says what, how large",
    )


def source(text: str, *, download: bool = False, licence: Path | None = None) -> Source:
    """What SOURCE names, with what is known beside it.

    licence: a file whose text goes with the weights. UserError: it is not there, or damaged.
    """
    if text.startswith(PREFIX):
        wanted = hub.model(text)
        weights = hub.weights(wanted, download=download)
        pixels = {"mean": [*wanted.mean], "std": [*wanted.std]}
        return Source(weights, pixels, _licence(weights, licence), wanted.licence)
    weights = _file(Path(text))
    return Source(weights, _pixels(weights), _licence(weights, licence))


def _file(place: Path) -> Path:
    """UserError: there is none."""
    if place.is_dir():
        there = [place / name for name in hub.NAMES if (place / name).is_file()]
        if not there:
            raise UserError(f"{place} holds no {' and no '.join(hub.NAMES)}: name the file itself")
        return there[0]
    if not place.is_file():
        raise UserError(
            f"{place}: no such file. Nothing is downloaded here, but for timm:NAME with --download;"
            " `hf download REPOSITORY model.safetensors config.json` says where it puts them"
        )
    return place


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a checkpoint of PyTorch, whose code is not run."""
    if path.suffix != ".safetensors":
        return read_checkpoint(path, PARTS)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged: {error}") from error


def _pixels(weights: Path) -> dict[str, Any]:
    """Mean and deviation of the pixels, where a config.json beside the weights says them."""
    about = weights.parent / "config.json"
    if not about.is_file():
        return {}
    try:
        found = parse_object(about.read_bytes()).get("pretrained_cfg", {})
    except (OSError, ValueError) as error:
        raise UserError(f"{about} cannot be read: {error}") from error
    return {key: found[key] for key in ("mean", "std") if isinstance(found, dict) and key in found}


def _licence(weights: Path, given: Path | None) -> str:
    """The text of the licence; empty: none was found."""
    if given is None:
        given = next(iter(sorted(weights.parent.glob("LICENSE*"))), None)
    try:
        return given.read_text(errors="replace") if given else ""
    except OSError as error:
        raise UserError(f"--licence {given} cannot be read: {error.strerror}") from error

"""Labelled features that are on the disk: what classifiers and clusters are made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from poa_ds.evaluate.embed.files import ABOUT, ROWS
from poa_ds.model.space import Subnet
from poa_ds.system import dist
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.json_text import parse_object

# of two sets that one classifier can read
ALIKE = ("weights_sha256", "feature", "unit_length", "resize", "crop", "mean", "std", "precision")


@dataclass(frozen=True)
class FeatureSet:
    """One set of images by several sizes. place: how messages name it.

    setting: what the features depend on, as `poa-ds embed` writes it. files: size (384x12) -> its
    safetensors with `features` (n, C) and `labels` (n,), -1 for none. not_finite: sizes with
    features that are not finite, though the images are whole.
    """

    place: str
    setting: Mapping[str, Any]
    classes: Sequence[str]
    files: Mapping[str, Path]
    not_finite: frozenset[str] = frozenset()

    @classmethod
    def at(cls, folder: Path) -> "FeatureSet":
        """A folder of `poa-ds embed`. UserError: it is none, or has no labels and vectors."""
        path = folder / ABOUT
        if not path.is_file():
            raise UserError(f"{folder} holds no features: write them with `poa-ds embed`")
        try:
            about = parse_object(path.read_bytes(), setting=dict, files=dict, classes=list)
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if about["setting"].get("format") != "safetensors":
            raise UsageError(f"{folder} has no labels in its files: embed --format safetensors")
        if about["setting"].get("feature") == "patches":
            raise UsageError(f"{folder} holds patches: embed --what cls, or cls+avg")
        files = {str(Subnet.read(size)): folder / name for size, name in about["files"].items()}
        strange = frozenset(str(Subnet.read(size)) for size in about.get("not_finite", {}))
        return cls(str(folder), about["setting"], about["classes"], files, strange)

    def rows(self, size: str, numbers: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """(features (n, C), labels (n,)) of the images that have a class and are not damaged.

        numbers: of the images in the set, if not all of them.
        """
        found = load_file(self.files[size])
        features, labels = found["features"], found["labels"]
        if numbers is not None:
            features, labels = features[numbers], labels[numbers]
        good = (labels >= 0) & np.isfinite(features).all(1)
        features, labels = (torch.from_numpy(part[good]) for part in (features, labels))
        if not len(labels):
            raise UserError(f"{self.place}: no row has a class and finite features")
        return features, labels.long()

    def keys(self) -> list[str]:
        """What names each image, in order."""
        lines = (self.folder / ROWS).read_text().splitlines()
        return [json.loads(line)["key"] for line in lines]

    def numbers(self, size: str) -> np.ndarray:
        """Of the images that `rows` gives."""
        found = load_file(self.files[size])
        finite = np.isfinite(found["features"]).all(1)
        return np.flatnonzero((found["labels"] >= 0) & finite)

    def keys_of(self, size: str) -> list[str]:
        """What names the images that `rows` gives."""
        every = self.keys()
        return [every[number] for number in self.numbers(size)]

    @property
    def folder(self) -> Path:
        return next(iter(self.files.values())).parent

    def record(self, images: int) -> dict[str, Any]:
        """For a protocol: how many of which images."""
        setting = self.setting
        return {"images": images, "of": setting["rows"], "index_sha256": setting["images_sha256"]}

    def taken(self) -> dict[str, Any]:
        """For a protocol: how images became features."""
        names = ("feature", "unit_length", "resize", "crop", "precision")
        return {name: self.setting[name] for name in names}


def check_alike(train: FeatureSet, val: FeatureSet) -> None:
    """UsageError: features of other weights, or taken in another way, or the same images."""
    one, other = train.setting, val.setting
    for name in ALIKE:
        if one.get(name) != other.get(name):
            raise UsageError(
                f"{train.place} and {val.place} differ in {name}: "
                f"{one.get(name)} and {other.get(name)}; one classifier cannot read both"
            )
    if one["images_sha256"] == other["images_sha256"]:
        raise UsageError(f"{train.place} and {val.place} hold the same images")
    if not set(train.files) & set(val.files):
        raise UsageError(f"{train.place} and {val.place} have no size in common")


def usable(
    sets: Sequence[FeatureSet], asked: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """The sizes that all sets have, or those asked for; then those with features not finite.

    UsageError: one that was asked for is not there.
    """
    common = [size for size in sets[0].files if all(size in other.files for other in sets)]
    lacking = [size for size in asked or () if size not in common]
    if lacking:
        raise UsageError(f"{sets[0].place} has no features of {lacking[0]}: it has {common}")
    chosen = [size for size in common if asked is None or size in asked]
    strange = [size for size in chosen if any(size in of.not_finite for of in sets)]
    if strange and dist.is_main():
        say(f"warning: left out, as their features are not finite: {', '.join(strange)}")
    return [size for size in chosen if size not in strange], strange

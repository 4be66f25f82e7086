"""What was asked of `poa-ds adapt`, and where each part of it is."""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import MANIFEST
from poa_ds.system.errors import UsageError

POA = "poa"  # the stage of --then-poa, and its folder in RUN


@dataclass(frozen=True)
class Job:
    """What was asked, and where each part of it is."""

    args: argparse.Namespace

    @property
    def out(self) -> Path:
        return self.args.out

    @property
    def start(self) -> Path:
        return self.out / "start"

    @property
    def stages(self) -> tuple[str, ...]:
        """Their names, in order."""
        then = (POA,) if self.args.then_poa else ()
        return ("shard", "import", "before", "train", *then, "table", "report")

    @property
    def runs(self) -> list[Path]:
        """Output directories of its trainings, in order."""
        return [self.out, *([self.out / POA] if self.args.then_poa else [])]

    def sources(self) -> dict[str, Path]:
        """Split -> its folder of images or shards."""
        images = self.args.images
        if not images.is_dir():
            raise UsageError(f"--images {images}: no such folder")
        parts = {name: images / name for name in ("train", "val") if (images / name).is_dir()}
        return parts if "train" in parts else {"train": images}

    def shards(self) -> dict[str, Path]:
        """Split -> where its shards are, or will be."""
        return {
            name: place if (place / MANIFEST).is_file() else self.out / "shards" / name
            for name, place in self.sources().items()
        }

    def words(self) -> dict[str, object]:
        """What a continuation must ask for too."""
        keys = "weights images config rebase widths depths image_size channels head_dim"
        keys += " input_scale range mean std"
        found = {key: getattr(self.args, key) for key in keys.split()}
        found |= {"overrides": self.args.overrides, POA: self.args.then_poa}
        return json.loads(json.dumps(found, default=str))

    def measured(self) -> bool:
        """Whether both splits are there with labels, which k-NN needs."""
        shards = self.shards()
        labelled = ((ShardFolder.open(place).labels >= 0).any() for place in shards.values())
        return "val" in shards and all(labelled)

    def can_measure(self) -> bool:
        """As `measured`, also before there are shards: then by the folders alone."""
        there = all((place / MANIFEST).is_file() for place in self.shards().values())
        return self.measured() if there else "val" in self.sources()

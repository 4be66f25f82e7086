"""Features of sets of images by sizes of a run, computed once for all commands that read them.

RUN/features/step00000300/<feature>-<letters of what it depends on>/ is a folder as `poa-ds embed`
writes it, to which sizes are added as they are asked for.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from poa_ds.checkpoint.deployed import find_teacher, load_teacher, weights_hash
from poa_ds.data.places import open_folder
from poa_ds.evaluate.embed.command import setting_of, tell_cost, write
from poa_ds.evaluate.embed.files import ABOUT, is_there
from poa_ds.evaluate.embed.sources import Images, Shards
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.features import Readout
from poa_ds.evaluate.ranks import held
from poa_ds.evaluate.score_rows import identity
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments, dist, paths
from poa_ds.system.console import say
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import give_name, replace_text
from poa_ds.system.json_text import parse
from poa_ds.system.paths import is_address
from poa_ds.system.run_folder import RunFolder

LOCK = "features_lock.json"  # of the run: who makes features, or reads some that will go
PASSING = "until_the_command_ends"  # a file in a folder of features that nobody has asked to keep


@dataclass(frozen=True)
class Reader:
    """A network that reads images, and how.

    weights: their hash, or what else tells them from others. floor: behind the names of what is
    found by a network that was not trained (`floors`).
    """

    teacher: Path
    model: ElasticBackbone
    recipe: Recipe
    step: int
    subnets: Sequence[Subnet]
    readout: Readout
    batch_size: int
    workers: int
    weights: str
    floor: str = ""

    @classmethod
    def of(cls, args: argparse.Namespace, device: torch.device) -> "Reader":
        """As the options of `add_arguments` say."""
        model, recipe, step = load_teacher(args.run, args.step)
        readout = Readout.of(recipe, device)
        teacher = find_teacher(args.run, args.step)
        return cls(
            teacher,
            model,
            recipe,
            step,
            model.space.select(args.sizes or [*model.space.names] or recipe.evaluation.sizes),
            readout,
            args.batch_size or recipe.evaluation.batch_size,
            readout.workers if args.workers is None else args.workers,
            weights_hash(teacher),
        )

    @property
    def folder(self) -> RunFolder:
        return RunFolder.around(self.teacher)

    def place(self, name: str, given: str | None) -> str:
        """Where the set is: as given, or as the recipe says. UsageError: it does not."""
        options = self.recipe.evaluation
        own = {"train": options.bank or self.recipe.data.train, "val": options.queries}[name]
        if not (place := given or own):
            raise UsageError(f"the run's recipe names no such images: give --{name} PLACE")
        return place


def add_arguments(
    parser: argparse.ArgumentParser, *, shards_alone: bool = False, **places: str
) -> None:
    """What every command that reads features takes; places: name of a set -> what it is for.

    shards_alone: a set cannot be a folder of features.
    """
    kinds = "shards" if shards_alone else "shards, or features that `poa-ds embed RUN` has written"
    for name, what in places.items():
        parser.add_argument(
            f"--{name}",
            type=paths.place,
            metavar="PLACE",
            help=f"{what}: {kinds} (recipe's)",
        )
    parser.add_argument(
        "--keep-features", action="store_true", help="in RUN/features, for the next command"
    )
    add_reader_arguments(parser)


def add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    """What `Reader.of` takes, and how rows are printed."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument(
        "--sizes",
        type=arguments.named,
        help="all, or names and WIDTHxDEPTH, by commas (recipe's names)",
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--batch-size", type=arguments.count, help="images at a time (recipe's evaluation's)"
    )
    parser.add_argument("--workers", type=arguments.whole, help="loader processes (recipe's)")
    parser.add_argument("--seed", type=arguments.whole, default=0, help="(%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="say what it costs, do nothing")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--csv", action="store_true", help="print CSV")
    output.add_argument("--json", action="store_true", help="print JSON")


@dataclass
class Cache:
    """Sets of features by place, of what `reads` was last told.

    stopped: by SIGTERM; what is made stays for the same command.
    keep: for other commands too. used: the folders that this one reads. own: holds the lock, which
    features that are there to stay do not need.
    """

    reader: Reader
    feature: str
    keep: bool
    own: ExitStack
    used: set[Path] = field(default_factory=set)
    opened: dict[str, Shards] = field(default_factory=dict)  # by place
    locked: bool = False
    stopped: bool = False

    def reads(self, reader: Reader, feature: str) -> None:
        """What is asked for from here on; reader: another of the same run."""
        self.reader, self.feature = reader, feature

    def cost(self, place: str) -> None:
        """Say what is not there yet."""
        if not is_features(place):
            self._missing(self.images(place), tell=True)

    def images(self, place: str) -> Shards:
        """Those of a place, which is opened once."""
        if place not in self.opened:
            data, indexes = self.reader.recipe.data, self.reader.folder.images
            self.opened[place] = Shards(open_folder(place, data, indexes))
        return self.opened[place]

    def get(self, place: str) -> FeatureSet | None:
        """The features of its images by all sizes of the reader. None: stopped. A collective."""
        if not is_features(place):
            return self.of(self.images(place))
        found = FeatureSet.at(Path(place))
        if found.setting["weights_sha256"] != self.reader.weights:
            raise UsageError(f"{place} holds features of other weights than {self.reader.teacher}")
        if found.setting["feature"] != self.feature:
            raise UsageError(f"{place} holds features of another kind: embed --what {self.feature}")
        return found

    def of(self, images: Images) -> FeatureSet | None:
        """The same for any images. UserError: another command makes features of this run."""
        if self.stopped:
            return None
        reader = self.reader
        out, missing, own = self._missing(images, tell=False)
        goes = bool(missing) or (out / PASSING).exists()
        if not self.locked and dist.any_rank(goes, reader.readout.device):
            what = "an evaluation that makes features"
            self.own.enter_context(held(reader.folder.path, what, name=LOCK))
            self.locked = True
            out, missing, own = self._missing(images, tell=False)
        if not missing:
            return self._of(out)
        labels = [subnet.label for subnet in missing]
        setting = own | {"step": reader.step, "sizes": labels, "batch_size": reader.batch_size}
        part = out.with_name(f"{out.name}-{identity({'sizes': labels})}")
        tell_cost(reader.model, missing, setting, out, to=say)
        out.parent.mkdir(parents=True, exist_ok=True)
        if not is_there(part, setting):
            done = write(
                part, reader.model, images, setting, reader.readout, workers=reader.workers
            )
            if done is None:
                self.stopped = True
                return None
        if dist.is_main():
            _join(part, out, passing=not self.keep)
        dist.barrier()
        return self._of(out)

    def _missing(self, images: Images, *, tell: bool) -> tuple[Path, list[Subnet], dict[str, Any]]:
        """(the set's folder, sizes that are not there, what features depend on)."""
        reader = self.reader
        own = setting_of(
            reader.weights, reader.recipe, images, reader.readout, feature=self.feature
        )
        root = reader.folder.features / f"step{reader.step:08d}"
        out = root / f"{self.feature}-{identity(own)}"
        there = _about(out)["files"] if out.is_dir() else {}
        missing = [subnet for subnet in reader.subnets if subnet.label not in there]
        if tell and missing:
            tell_cost(reader.model, missing, own, out)
        return out, missing, own

    def _of(self, folder: Path) -> FeatureSet:
        self.used.add(folder)
        found, sizes = FeatureSet.at(folder), [str(subnet) for subnet in self.reader.subnets]
        return replace(found, files={size: found.files[size] for size in sizes})


@contextmanager
def cache(reader: Reader, feature: str, *, keep: bool) -> Iterator[Cache]:
    """What was made for the block alone is gone behind it, unless it is kept or was stopped."""
    with ExitStack() as own:
        found = Cache(reader, feature, keep, own)
        yield found
        dist.barrier()
        if dist.is_main() and found.locked and not found.stopped:
            _clear(found)


def _clear(found: Cache) -> None:
    features, step = found.reader.folder.features, found.reader.step
    for folder in found.used:
        if found.keep:
            (folder / PASSING).unlink(missing_ok=True)
        elif (folder / PASSING).exists():
            shutil.rmtree(folder)
    for empty in (features / f"step{step:08d}", features):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


def is_features(place: str) -> bool:
    """Whether it is a folder that `poa-ds embed` has written."""
    return not is_address(place) and (Path(place) / ABOUT).is_file()


def _about(folder: Path) -> dict:
    try:
        found = parse((folder / ABOUT).read_bytes())
        return {name: dict(found[name]) for name in ("setting", "files", "not_finite")} | found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT} is damaged: {error}; delete {folder}") from error


def _join(part: Path, out: Path, *, passing: bool) -> None:
    """Move the sizes of a new folder into one that others are in already; passing: if it is new."""
    if not out.is_dir():
        if passing:
            (part / PASSING).touch()
        give_name(part, out)
        return
    added, about = _about(part), _about(out)
    for name in added["files"].values():
        if (part / name).exists():  # else a killed command has moved it
            give_name(part / name, out / name)
    for name in ("files", "not_finite"):
        about[name] |= added[name]
    about["setting"]["sizes"] += added["setting"]["sizes"]
    replace_text(out / ABOUT, json.dumps(about, indent=1) + "\n")
    shutil.rmtree(part)

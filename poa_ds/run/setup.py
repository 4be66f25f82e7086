"""What a run is built from before its first step: images, engine, stepper; and one step of them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from poa_ds.checkpoint import folders
from poa_ds.checkpoint.state import RunState
from poa_ds.data.batch import Batch
from poa_ds.data.loader import train_batches
from poa_ds.data.places import open_folder, open_training, order_name
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.loose import LooseFolder
from poa_ds.engine import engine
from poa_ds.engine.engine import Engine
from poa_ds.evaluate.finetune.images import learnt_from
from poa_ds.export import start
from poa_ds.methods.method import method
from poa_ds.recipe import checks, derived, ds_json
from poa_ds.recipe.omissions import omissions
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.run import environment, online
from poa_ds.run.clock import Clock
from poa_ds.run.step import Stepper, StepResult
from poa_ds.run.watchdog import NCCL_SECONDS, SET_UP, Watchdog
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import destination
from poa_ds.track.tracker import Tracker
from poa_kernels import dispatch

CLOSING_SECONDS = 10.0  # for MLflow at the end of a run that did not come to its own


@dataclass(frozen=True)
class Step:
    """A step that was taken: with what, and what came of it."""

    batches: list[Batch]
    values: StepValues
    result: StepResult


class Setup:
    """One process's part of a run that can begin; making it brings the ranks together.

    source: the DeepSpeed file's name, for messages. indexes: where those of images that lie in no
    shards are kept; None: nowhere.
    """

    def __init__(
        self,
        recipe: Recipe,
        ds_file: dict,
        *,
        source: str,
        watchdog: Watchdog,
        indexes: Path | None = None,
    ) -> None:
        self.recipe, self.watchdog, self.requests = recipe, watchdog, watchdog.requests
        self.indexes = indexes
        self.folder = open_training(recipe.data, indexes, self._beat)
        if recipe.finetune.classes:
            self.folder = learnt_from(self.folder, recipe)
        self.data_hash = order_name(self.folder, recipe.data.block_shards)
        images = recipe.batch.slots * recipe.batch.images_per_slot
        if images > len(self.folder):
            raise UserError(
                f"a step has {images:,} images (batch.slots x images_per_slot), {self.folder.path}"
                f" only {len(self.folder):,}: an image would meet itself; use smaller batches"
            )
        checks.check_images(recipe, len(self.folder))
        device = engine.pick_device()
        checks.check_precision(recipe, device)
        operators = _select_kernels(recipe, device)
        if device == "cuda":
            watchdog.most_seconds = NCCL_SECONDS
        engine.start_processes(device, mlflow="mlflow" in recipe.trackers)
        environment.say_differences()
        self._check_agreement()
        self.ds_config = ds_json.resolved(recipe, ds_file, dist.world_size(), source=source)
        self.numbers = derived.of(recipe, len(self.folder))
        self.schedules = derived.schedules(recipe, len(self.folder))
        trained = method(recipe)
        classes = online.classes(recipe, self.folder, trained)
        networks = trained.networks()
        self.begins_with = self._begins_with()
        self.begun = start.begin(networks, self.begins_with) if self.begins_with else ""
        self.engine = Engine(networks, recipe.optimizer, self.ds_config)
        probe = online.of_recipe(recipe, classes, self.engine.device)
        self.stepper = Stepper(recipe, self.engine, trained, probe)
        self.clock = Clock(images)
        if dist.is_main():
            self._announce(operators)

    def open_folder(self, place: str) -> ShardFolder:
        """The images of a place that an evaluation looks at; files are looked at once."""
        if isinstance(self.folder, LooseFolder) and place == self.recipe.data.train:
            return self.folder
        return open_folder(place, self.recipe.data, self.indexes, self._beat)

    def _beat(self) -> None:
        self.watchdog.beat(SET_UP, slow=True)

    def _check_agreement(self) -> None:
        """UserError where ranks see other images: a file came, or a host has another copy."""
        if len({*dist.all_gather_objects(self.data_hash)}) > 1:
            raise UserError(
                f"ranks do not see the same images in {self.folder.path}: let nothing change it, "
                "and give every host the same"
            )

    def _begins_with(self) -> str:
        """The network that the recipe starts from; empty where a checkpoint has other weights."""
        output = self.recipe.output_dir
        goes_on = output and folders.listed(RunFolder(Path(output)).checkpoints)
        return "" if goes_on else self.recipe.start

    def batches(self, first_step: int) -> Iterator[list[Batch]]:
        """The batches of this rank's slots, step by step, augmented on the device later."""
        world = dist.world_size()
        batches = train_batches(
            self.recipe,
            self.folder,
            rank=dist.rank(),
            world=world,
            first_step=first_step,
            workers=self.recipe.data.workers,
        )
        while True:
            yield [next(batches) for _ in range(self.recipe.batch.slots // world)]

    def step(self, state: RunState, batches: Iterator[list[Batch]], *, examine: bool) -> Step:
        """Take the step after those of `state`, and count it. examine: with the method's figures.

        KeyboardInterrupt: Ctrl-C came where Python could not raise it.
        """
        if self.requests.interrupted:
            raise KeyboardInterrupt
        number = state.step
        details = partial(self.stepper.details, number)
        beat = partial(self.watchdog.beat, slow=not self.clock.seconds, details=details)
        beat(f"step {number + 1:,}: waiting for images", stops=True)
        own = self.clock.waiting_for(batches)
        beat(f"step {number + 1:,}: training")
        values = self.schedules.at(number)
        result = self.stepper.step(
            own, values, stop=lambda: bool(self.requests.wanted), examine=examine
        )
        self.clock.step_done()
        images = self.numbers.images_per_step
        state.count(images, applied=result.applied, finite=result.finite)
        return Step(own, values, result)

    @contextmanager
    def closing(self, tracker: Tracker) -> Iterator[None]:
        """Around the steps: an error learns where it came, tracking and the ranks' bond end."""
        self.watchdog.beat("the first step", slow=True)
        try:
            yield
        except BaseException as error:
            self.watchdog.rest()
            if isinstance(error, UserError):
                error.add_note(f"in {self.watchdog.where()}")
            tracker.close("FAILED", CLOSING_SECONDS)
            raise
        self.watchdog.beat("closing", slow=True)
        tracker.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _announce(self, operators: str) -> None:
        count, space = self.engine.networks.backbone.parameter_count, derived.space(self.recipe)
        stage = self.ds_config.get("zero_optimization", {}).get("stage", 0)
        told = f", {self.begun}" if self.begun else ""
        begun = f"begins with    {self.begins_with}{told}\n" if self.begins_with else ""
        tell(derived.describe(self.recipe, len(self.folder)))
        tell(
            f"parameters     {count(space.smallest) / 1e6:,.2f} M ({space.smallest}) to "
            f"{count(space.intact) / 1e6:,.2f} M ({space.intact})\n"
            f"{begun}"
            f"processes      {dist.world_size()} on {self.engine.device.type}, ZeRO stage {stage}\n"
            f"kernels        {operators}\n"
            f"metrics        {destination.described(self.recipe, os.environ)}"
        )
        doubts = destination.warnings(self.recipe, os.environ)
        for doubt in (*omissions(self.recipe, len(self.folder)), *doubts):
            say(f"warning: {doubt}")


def _select_kernels(recipe: Recipe, device: str) -> str:
    """Sets what the operators of this process run; a sentence about it."""
    try:
        return dispatch.select(recipe.kernels, device, compiled=recipe.compile)
    except ValueError as error:
        raise UserError(str(error)) from error

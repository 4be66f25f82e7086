"""A training run: what is built at its start, and the loop."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from tqdm import tqdm

from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.folders import read_manifest
from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import RunState
from poa_ds.data.batch import Batch
from poa_ds.data.loader import train_batches
from poa_ds.data.places import open_training, order_name
from poa_ds.engine import engine
from poa_ds.engine.engine import Engine
from poa_ds.methods.method import method
from poa_ds.recipe import checks, continuing, derived, ds_json, load
from poa_ds.recipe.omissions import omissions
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe
from poa_ds.run import bad_samples, environment
from poa_ds.run import exit_status as ended
from poa_ds.run.clock import Clock
from poa_ds.run.evaluations import Curves
from poa_ds.run.journal import Journal
from poa_ds.run.step import Stepper, StepResult
from poa_ds.run.watchdog import NCCL_SECONDS, Watchdog
from poa_ds.system import dist
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UserError
from poa_ds.system.files import replace_text
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.stopping import Stopped
from poa_ds.track import destination
from poa_ds.track.metrics_file import read_rows
from poa_ds.track.tracker import Tracker
from poa_kernels import dispatch

DRY_STEPS = 2
CLOSING_SECONDS = 10.0  # for MLflow at the end of a run that did not come to its own


class Training:
    """One process's part of a run; a context that closes tracking and the process group."""

    def __init__(
        self, recipe: Recipe, ds_file: dict, *, source: str, dry_run: bool, watchdog: Watchdog
    ) -> None:
        self.recipe, self.dry_run = recipe, dry_run
        self.watchdog, self.requests = watchdog, watchdog.requests
        self.folder = open_training(recipe.data)
        self.data_hash = order_name(self.folder, recipe.data.block_shards)
        images = recipe.batch.slots * recipe.batch.images_per_slot
        if images > len(self.folder):
            raise UserError(
                f"a step has {images:,} images (batch.slots x images_per_slot), {self.folder.path}"
                f" only {len(self.folder):,}: an image would meet itself; use smaller batches"
            )
        device = engine.pick_device()
        checks.check_precision(recipe, device)
        self.operators = _select_kernels(recipe, device)
        if device == "cuda":
            watchdog.most_seconds = NCCL_SECONDS
        engine.start_processes(device)
        environment.say_differences()
        ds_config = ds_json.resolved(recipe, ds_file, dist.world_size(), source=source)
        self.numbers = derived.of(recipe, len(self.folder))
        self.schedules = derived.schedules(recipe, len(self.folder))
        self.output = RunFolder(Path(recipe.output_dir))
        trained = method(recipe)
        self.engine = Engine(trained.networks(), recipe.optimizer, ds_config)
        self.stepper = Stepper(recipe, self.engine, trained)
        self._announce(ds_config)
        self.state = RunState(data_hash=self.data_hash)
        self.resumed = not dry_run and self._resume()
        if dist.is_main() and not dry_run:
            self._keep_recipe(ds_config)
            ended.forget(self.output.path)
            bad_samples.keep_through(
                self.output.bad_samples, self.state.step if self.resumed else -1
            )
        self.saver = None if dry_run else self._saver()
        self.tracker = self._start_tracker()
        self.curves = None if dry_run else self._curves()

    def run(self) -> int:
        """All steps that are left; the exit status, STOPPED where all ranks agreed to stop."""
        self.watchdog.beat("the first step", slow=True)
        state, numbers = self.state, self.numbers
        last = DRY_STEPS if self.dry_run else numbers.steps
        clock = Clock(self.recipe.batch.slots * self.recipe.batch.images_per_slot)
        batches, journal = self._slots(), self._journal()
        stopped = self._evaluate(self.curves is not None and self.curves.owes(state.step, numbers))
        with self._bar(last) as bar:
            while state.step < last and not stopped:
                if self.requests.interrupted:
                    raise KeyboardInterrupt
                logs = (state.step + 1) % self.recipe.log_every == 0 or state.step + 1 == last
                result, values, slots = self._step(batches, clock, examine=logs)
                state.step += 1
                state.samples_seen += numbers.images_per_step
                self._note_bad(result, slots)
                bar.update()
                if logs:
                    journal.write(state, result, values, clock, bar)
                due = self.curves is not None and self.curves.due(state.step, numbers)
                stopped = result.stop or self._evaluate(due, clock)
                if self.saver:
                    self.saver.poll()
                    if stopped or state.step % numbers.checkpoint_steps == 0 or state.step == last:
                        self._save()
                        clock.restart()
                        stopped = stopped or (state.step < last and self._any_wants_to_stop())
        if self.saver:
            self.watchdog.beat("waiting until the checkpoint is on the disk", slow=True)
            self.saver.finish()
        if self.dry_run and not stopped:
            clock.report(numbers.steps)
        return self._finish(stopped)

    def _step(
        self, batches: Iterator[list[Batch]], clock: Clock, *, examine: bool
    ) -> tuple[StepResult, StepValues, list[Batch]]:
        """One step, with what it took."""
        number, slow = self.state.step, not clock.seconds
        about = {"slow": slow, "details": lambda: self.stepper.details(number)}
        self.watchdog.beat(f"step {number + 1:,}: waiting for images", **about)
        slots = clock.waiting_for(batches)
        self.watchdog.beat(f"step {number + 1:,}: training", **about)
        values = self.schedules.at(number)
        result = self.stepper.step(
            slots, values, stop=lambda: bool(self.requests.wanted), examine=examine
        )
        clock.step_done()
        return result, values, slots

    def _evaluate(self, due: bool, clock: Clock | None = None) -> bool:
        """Evaluate where it is due; whether all ranks have agreed to stop meanwhile."""
        if not due:
            return False
        assert self.curves
        self.watchdog.beat(f"evaluation after step {self.state.step:,}", slow=True)
        try:
            self.curves.evaluate(self.state.step)
        except Stopped:
            return True
        if clock:
            clock.restart()
        return self.state.step < self.numbers.steps and self._any_wants_to_stop()

    def _any_wants_to_stop(self) -> bool:
        return dist.any_rank(bool(self.requests.wanted), self.engine.device)

    def _between_batches(self) -> None:
        """All ranks call it equally often in an evaluation; Stopped as soon as one asks for it."""
        self.watchdog.beat(f"evaluation after step {self.state.step:,}", slow=True)
        if self._any_wants_to_stop():
            raise Stopped

    def _finish(self, stopped: bool) -> int:
        """Say how the run ended, to people and to `poa-ds launch`; the exit status."""
        number = ended.STOPPED if stopped else ended.DONE
        if stopped:
            self.watchdog.rest()  # the launcher signals this rank as soon as another has left
        reasons = dist.all_gather_objects(self.requests.wanted) if stopped else []
        if dist.is_main() and not self.dry_run:
            step, reason = self.state.step, next(filter(None, reasons), "")
            ended.write(self.output.path, ended.Ended(number, step, reason))
            if stopped:
                saved = f"saved at step {step:,}" if step else "before the first step"
                tell(f"stopped by {reason}, {saved}; the same command continues")
            else:
                tell(f"done: {step:,} steps; results in {self.output.path}")
        if stopped and self.tracker:
            self.tracker.close("KILLED", CLOSING_SECONDS)
        return number

    def _slots(self) -> Iterator[list[Batch]]:
        """The batches of this rank's slots, step by step, augmented on the device later."""
        world = dist.world_size()
        batches = train_batches(
            self.recipe,
            self.folder,
            rank=dist.rank(),
            world=world,
            first_step=self.state.step,
            workers=self.recipe.data.workers,
        )
        while True:
            yield [next(batches) for _ in range(self.recipe.batch.slots // world)]

    def _announce(self, ds_config: dict) -> None:
        if not dist.is_main():
            return
        count, space = self.engine.networks.backbone.parameter_count, derived.space(self.recipe)
        stage = ds_config.get("zero_optimization", {}).get("stage", 0)
        tell(derived.describe(self.recipe, len(self.folder)))
        tell(
            f"parameters     {count(space.smallest) / 1e6:,.2f} M ({space.smallest}) to "
            f"{count(space.intact) / 1e6:,.2f} M ({space.intact})\n"
            f"processes      {dist.world_size()} on {self.engine.device.type}, ZeRO stage {stage}\n"
            f"kernels        {self.operators}\n"
            f"metrics        {destination.described(self.recipe, os.environ)}"
        )
        doubts = destination.warnings(self.recipe, os.environ)
        for doubt in (*omissions(self.recipe, len(self.folder)), *doubts):
            say(f"warning: {doubt}")

    def _keep_recipe(self, ds_config: dict) -> None:
        """Write what this run is into its folder."""
        try:
            self.output.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.output.recipe, load.to_yaml(self.recipe))
            replace_text(self.output.deepspeed, json.dumps(ds_config, indent=1) + "\n")
            derived = json.dumps(asdict(self.numbers), indent=1)
            replace_text(self.output.derived, derived + "\n")
        except OSError as error:
            raise UserError(f"output_dir {self.output.path}: {error.strerror}") from error

    def _resume(self) -> bool:
        """Continue from the newest whole checkpoint of output_dir; False when there is none."""
        root = self.output.checkpoints
        found, refused = checkpoint.find_together(root)
        for line in refused if dist.is_main() else ():
            say(f"not used: {line}")
        if found is None:
            if refused:
                raise UserError(f"{root}: no checkpoint is whole; move the folder away to restart")
            if dist.is_main() and self.output.metrics.exists():
                tell(f"there is no checkpoint in {root} yet: begins at step 0 again")
            return False
        changed = continuing.changes(read_manifest(found)["recipe"], self.recipe)
        continuing.refuse(changed, found)
        self.state, self.stepper.state = checkpoint.load(self.engine, found)
        if self.state.data_hash != self.data_hash:
            raise UserError(
                f"{found} was made with other data than data.train {self.folder.path} "
                "(the index differs): use the same shards, or another output_dir"
            )
        if dist.is_main():
            tell(f"continues at step {self.state.step:,} from {found}")
            place = {"step": self.state.step, "images": len(self.folder)}
            for line in continuing.lines(changed, self.recipe, **place):
                tell(f"  {line}")
            if self.recipe.data.mode == "stream":
                tell("data.mode stream: with other images than without the interruption")
        return True

    def _saver(self) -> Saver:
        settings = self.recipe.checkpoint
        return Saver(
            self.output.checkpoints,
            keep_last=settings.keep_last,
            keep_every_steps=self.numbers.keep_steps,
            background=settings.background,
            device=self.engine.device,
            saved_step=self.state.step if self.resumed else -1,
        )

    def _start_tracker(self) -> Tracker | None:
        if self.dry_run:
            return None
        sizes = derived.space(self.recipe).subnets()
        count = self.engine.networks.backbone.parameter_count
        return Tracker.start(
            self.recipe,
            output_dir=self.output.path,
            is_main=dist.is_main(),
            resumed_ids=self.state.tracking if self.resumed else None,
            first_step=self.state.step,
            sizes=sizes,
            parameters={size: count(size) for size in sizes},
        )

    def _curves(self) -> Curves:
        assert self.tracker
        return Curves(
            self.recipe,
            self.engine,
            self.tracker,
            first_step=self.state.step if self.resumed else None,
            between_batches=self._between_batches,
        )

    def _journal(self) -> Journal:
        """A journal that knows the rows before this run's first step."""
        known = self.resumed and dist.is_main()
        return Journal(
            self.recipe,
            self.engine,
            self.tracker,
            warmup_steps=self.numbers.warmup_steps,
            earlier=read_rows(self.output.metrics) if known else (),
        )

    def _note_bad(self, result: StepResult, slots: list[Batch]) -> None:
        """List damaged images, count non-finite steps; a dump and the end after max_bad_steps."""
        self.state.skipped += not result.applied
        bad = [sample for batch in slots for sample in batch.bad]
        if bad and not self.dry_run:
            bad_samples.append(self.output.bad_samples, self.state.step, bad)
        if result.finite:
            self.state.bad_steps = 0
            return
        self.state.bad_steps += 1
        if self.state.bad_steps < self.recipe.max_bad_steps:
            return
        path = self.output.bad_step(self.state.step, dist.rank())
        record = {
            "step": self.state.step,
            "sizes": [str(s) for s in result.sizes],
            "terms": {name: str(value.item()) for name, value in result.terms.items()},
            "gradient_norms": {name: str(x) for name, x in result.gradient_norms.items()},
            "positions": [b.positions.tolist() for b in slots if b.positions is not None],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(record, indent=1) + "\n")
        raise UserError(
            f"{self.state.bad_steps} steps in a row had numbers that are not finite "
            f"(max_bad_steps); what they were: {path}"
        )

    def _save(self) -> None:
        assert self.tracker and self.saver
        self.watchdog.beat(f"checkpoint after step {self.state.step:,}", slow=True)
        self.state.tracking = self.tracker.ids
        self.tracker.sync()
        taken = checkpoint.snapshot(
            self.engine,
            self.state,
            extra=self.stepper.state,
            recipe=load.to_yaml(self.recipe),
            copied=self.saver.background,
        )
        self.saver.begin(taken)

    def _bar(self, last: int) -> tqdm:
        hidden = not (dist.is_main() and sys.stderr.isatty())
        start = self.state.step
        return tqdm(total=last, initial=start, desc="training", unit="step", disable=hidden)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.watchdog.beat("closing", slow=True)
        else:
            self.watchdog.rest()
        if isinstance(error, UserError):
            error.add_note(f"in {self.watchdog.where()}")
        if self.tracker and error is None:
            self.tracker.close()
        elif self.tracker:
            self.tracker.close("FAILED", CLOSING_SECONDS)
        if error is None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _select_kernels(recipe: Recipe, device: str) -> str:
    """Sets what the operators of this process run; a sentence about it."""
    try:
        return dispatch.select(recipe.kernels, device, compiled=recipe.compile)
    except ValueError as error:
        raise UserError(str(error)) from error

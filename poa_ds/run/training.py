"""A run: steps, evaluations and checkpoints, until its last step or until it is asked to stop.

What becomes of SIGTERM, SIGUSR1, SIGHUP, or the end of the launcher:
    system/stopping.py  `Requests`: Python writes the signal's number into a pipe, whatever it does
    run/watchdog.py     a thread reads the pipe, `requests.wanted` says why; the second signal kills
    engine/engine.py    each rank's wish travels in the reduction that every step needs anyway: so
                        all ranks learn after the same step that one of them wants to stop
    run/training.py     `stopping` is set by that step, or by the question that all ranks ask each
                        other between the batches of an evaluation, behind it and behind a
                        checkpoint; the loop ends, the step is saved, ended.json says STOPPED
    run/exit_status.py  the status 75; `poa-ds launch` reads ended.json
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from poa_ds.checkpoint import folders
from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import RunState, snapshot
from poa_ds.export.start import licence
from poa_ds.recipe import derived, load
from poa_ds.run import bad_samples, closing, exit_status
from poa_ds.run.accuracies import Accuracies
from poa_ds.run.evaluations import Evaluations
from poa_ds.run.journal import Journal
from poa_ds.run.pages import Pages
from poa_ds.run.resume import resume
from poa_ds.run.screen import Screen
from poa_ds.run.setup import CLOSING_SECONDS, Setup, Step
from poa_ds.run.standing import Standing
from poa_ds.run.surroundings import surroundings
from poa_ds.system import dist
from poa_ds.system.console import tell
from poa_ds.system.errors import UserError
from poa_ds.system.events import Events
from poa_ds.system.files import replace_text
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.stopping import Stopped
from poa_ds.track.alarms import judged_from
from poa_ds.track.metrics_file import read_rows
from poa_ds.track.tracker import Tracker

LAST_PAGE_SECONDS = 60.0  # at the end of a whole run


class Training:
    """One process's part of a run with a folder: new, or going on where the folder's run stood."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.recipe, self.numbers = setup, setup.recipe, setup.numbers
        self.watchdog, self.stopping = setup.watchdog, False
        self.output = RunFolder(Path(setup.recipe.output_dir))
        resumed = resume(setup, self.output)
        self.state = resumed or RunState(data_hash=setup.data_hash)
        # nothing belongs to a new run that another one has left in the folder
        first_step = self.state.step if resumed else None
        if dist.is_main():
            self._keep_recipe()
            if resumed is None:
                self._keep_licence()
            exit_status.forget(self.output.path)
            bad_samples.keep_through(self.output.bad_samples, -1 if resumed is None else first_step)
        self.events = Events(self.output.events, fresh=resumed is None, writes=dist.is_main())
        where = surroundings(setup.engine.device)
        self.events.append(self.state.step, "start" if resumed is None else "resume", where)
        self.saver = self._saver(first_step)
        self.tracker = self._tracker(first_step)
        writes = dist.is_main() and setup.recipe.report
        self.pages = Pages(self.output.path, self.tracker, writes=writes)
        kind = Accuracies if setup.recipe.finetune.classes else Evaluations
        self.evaluations = kind(
            setup, self.tracker, first_step=first_step, between_batches=self._between_batches
        )
        self.screen = self._screen(first_step)
        self.journal = self._journal(first_step)
        self.batches = setup.batches(self.state.step)

    def run(self) -> int:
        """All steps that are left; the exit status, STOPPED where all ranks agreed to stop."""
        with self.setup.closing(self.tracker), self.pages:
            with self.screen:
                if self.evaluations.owes(self.state.step):
                    self.evaluate()
                while self.goes_on():
                    step = self.step()
                    self.check(step)
                    self.journal.write(self.state, step)
                    if self.evaluation_is_due():
                        self.evaluate()
                    self.saver.poll()
                    if self.saver.newest:
                        self.screen.saved(folders.step_of(self.saver.newest))
                    if self.checkpoint_is_due():
                        self.save()
            return self.finish()

    def goes_on(self) -> bool:
        return self.state.step < self.numbers.steps and not self.stopping

    def step(self) -> Step:
        examine = self.journal.has_row(self.state.step + 1)
        step = self.setup.step(self.state, self.batches, examine=examine)
        self.stopping = step.result.stop
        return step

    def check(self, step: Step) -> None:
        """List damaged images; after max_bad_steps that were not finite, a dump and the end."""
        bad = [sample for batch in step.batches for sample in batch.bad]
        if bad:
            bad_samples.append(self.output.bad_samples, self.state.step, bad)
        if self.state.bad_steps < self.recipe.max_bad_steps:
            return
        path, result = self.output.bad_step(self.state.step, dist.rank()), step.result
        record = {
            "step": self.state.step,
            "sizes": [str(s) for s in result.sizes],
            "terms": {name: str(value.item()) for name, value in result.terms.items()},
            "gradient_norms": {name: str(x) for name, x in result.gradient_norms.items()},
            "positions": [b.positions.tolist() for b in step.batches if b.positions is not None],
        }
        replace_text(path, json.dumps(record, indent=1) + "\n")
        raise UserError(
            f"{self.state.bad_steps} steps in a row had numbers that are not finite "
            f"(max_bad_steps); what they were: {path}"
        )

    def evaluation_is_due(self) -> bool:
        return not self.stopping and self.evaluations.due(self.state.step)

    def evaluate(self) -> None:
        self.watchdog.beat(f"evaluation after step {self.state.step:,}", slow=True)
        try:
            self.evaluations.evaluate(self.state.step)
            if self.evaluations.rows:
                self.screen.evaluated(self.evaluations.rows[-1])
            self.pages.write()
        except Stopped:
            self.stopping = True
        self.setup.clock.restart()
        self._agree_to_stop()

    def checkpoint_is_due(self) -> bool:
        step = self.state.step
        last = step == self.numbers.steps
        return self.stopping or last or step % self.numbers.checkpoint_steps == 0

    def save(self) -> None:
        self.watchdog.beat(f"checkpoint after step {self.state.step:,}", slow=True)
        start = time.perf_counter()
        self.state.tracking = self.tracker.ids
        self.tracker.sync()
        taken = snapshot(
            self.setup.engine,
            self.state,
            extra=self.setup.stepper.saved(),
            recipe=load.to_yaml(self.recipe),
            copied=self.saver.background,
        )
        self.saver.begin(taken)
        self.setup.clock.saved(time.perf_counter() - start)
        self.setup.clock.restart()
        self._agree_to_stop()

    def finish(self) -> int:
        """Wait for the disk; say how the run ended, to people and to `poa-ds launch`."""
        self.watchdog.beat("waiting until the checkpoint is on the disk", slow=True)
        self.saver.finish()
        if self.stopping:
            self.watchdog.rest()  # the launcher signals this rank as soon as another has left
        wanted = self.setup.requests.wanted
        reasons = dist.all_gather_objects(wanted) if self.stopping else []
        number = exit_status.STOPPED if self.stopping else exit_status.DONE
        step, reason = self.state.step, next(filter(None, reasons), "")
        self.events.append(step, "stop" if self.stopping else "end", reason)
        if dist.is_main():
            exit_status.write(self.output.path, exit_status.Ended(number, step, reason))
        self.watchdog.beat("writing the report", slow=True)
        self.pages.last(CLOSING_SECONDS if self.stopping else LAST_PAGE_SECONDS)
        if dist.is_main() and self.stopping:
            saved = f"saved at step {step:,}" if step else "before the first step"
            tell(f"stopped by {reason}, {saved}; the same command continues")
            closing.show(closing.at_a_stop, self.output.path)
        elif dist.is_main():
            tell(f"done: {step:,} steps; results in {self.output.path}")
            closing.show(closing.at_the_end, self.output.path)
        if self.stopping:
            self.tracker.close("KILLED", CLOSING_SECONDS)
        return number

    def _agree_to_stop(self) -> None:
        """Ask all ranks, unless it is agreed or there is nothing left to stop. A collective."""
        if self.goes_on():
            self.stopping = self._any_wants_to_stop()

    def _any_wants_to_stop(self) -> bool:
        return dist.any_rank(bool(self.setup.requests.wanted), self.setup.engine.device)

    def _between_batches(self) -> None:
        """All ranks call it equally often in an evaluation; Stopped as soon as one asks for it."""
        self.watchdog.beat(f"evaluation after step {self.state.step:,}", slow=True)
        if self._any_wants_to_stop():
            raise Stopped

    def _keep_licence(self) -> None:
        """Of the weights that the run begins with; its teachers and exports get it too."""
        self.output.licence.unlink(missing_ok=True)
        if self.setup.begins_with and (text := licence(self.setup.begins_with)):
            replace_text(self.output.licence, text)

    def _keep_recipe(self) -> None:
        """Write what this run is into its folder."""
        try:
            self.output.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.output.recipe, load.to_yaml(self.recipe))
            for path, tree in (
                (self.output.deepspeed, self.setup.ds_config),
                (self.output.derived, asdict(self.numbers)),
            ):
                replace_text(path, json.dumps(tree, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"output_dir {self.output.path}: {error.strerror}") from error

    def _saver(self, first_step: int | None) -> Saver:
        options = self.recipe.checkpoint
        return Saver(
            self.output.checkpoints,
            keep_last=options.keep_last,
            keep_every_steps=self.numbers.keep_steps,
            background=options.background,
            device=self.setup.engine.device,
            saved_step=-1 if first_step is None else first_step,
        )

    def _tracker(self, first_step: int | None) -> Tracker:
        sizes = derived.space(self.recipe).subnets()
        count = self.setup.engine.networks.backbone.parameter_count
        return Tracker.start(
            self.recipe,
            output_dir=self.output.path,
            is_main=dist.is_main(),
            resumed_ids=None if first_step is None else self.state.tracking,
            first_step=self.state.step,
            sizes=sizes,
            parameters={size: count(size) for size in sizes},
        )

    def _screen(self, first_step: int | None) -> Screen:
        recipe, rows = self.recipe, self.evaluations.rows
        standing = Standing(
            recipe.mlflow.run_name or self.output.path.absolute().name,
            self.state.step,
            self.numbers.steps,
            knn=rows[-1] if rows else None,
            report_k=recipe.evaluation.report_k,
            sizes={name: str(size) for name, size in derived.space(recipe).names.items()},
            saved=first_step,
            judged_from=judged_from(self.numbers.warmup_steps),
        )
        return Screen(
            standing,
            self.output.report,
            draws_there=dist.is_main(),
            stream=sys.stderr,
            environment=os.environ,
        )

    def _journal(self, first_step: int | None) -> Journal:
        """A journal that knows the rows before this run's first step."""
        known = first_step is not None and dist.is_main()
        return Journal(
            self.setup,
            self.tracker,
            self.events,
            self.screen,
            last_step=self.numbers.steps,
            earlier=read_rows(self.output.metrics) if known else (),
        )

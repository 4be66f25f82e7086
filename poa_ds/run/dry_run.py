"""Two steps of a run, to see what they cost; nothing is written."""

from pathlib import Path

from poa_ds.checkpoint.state import RunState
from poa_ds.run import exit_status
from poa_ds.run.journal import Journal
from poa_ds.run.screen import Screen
from poa_ds.run.setup import Setup
from poa_ds.system.events import Events
from poa_ds.system.run_folder import RunFolder
from poa_ds.track.tracker import Tracker

STEPS = 2  # the first one warms up


def dry_run(setup: Setup) -> int:
    """Take the steps and print what the second took; the exit status."""
    state, tracker = RunState(), Tracker.silent(setup.recipe)
    events = Events(RunFolder(Path(setup.recipe.output_dir)).events, fresh=False, writes=False)
    batches = setup.batches(first_step=0)
    journal = Journal(setup, tracker, events, Screen.nowhere(), last_step=STEPS)
    with setup.closing(tracker):
        while state.step < STEPS:
            step = setup.step(state, batches, examine=journal.has_row(state.step + 1))
            journal.write(state, step)
            if step.result.stop:
                setup.watchdog.rest()  # the launcher signals this rank as soon as another has left
                return exit_status.STOPPED
        setup.clock.report(setup.numbers.steps)
    return exit_status.DONE

"""Writes checkpoints after each of three steps into OUT/checkpoints and keeps the last two; or
loads one into another architecture, which must fail."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from poa_ds import checkpoint, checkpoint_files, engine
from poa_ds import config as recipes
from poa_ds.checkpoint import RunState
from poa_ds.saver import Saver
from tests.distributed.worker import Run, recipe


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    if "load" in wanted:
        run = Run(0, recipe(heads__prototypes=[48, 80]))
        folder, _ = checkpoint_files.find(Path(wanted["load"]))
        checkpoint.load(run.engine, folder)
        return
    run = Run(0, recipe())
    saver = Saver(out / "checkpoints", keep_last=2, keep_every_steps=0, background=True)
    for at in range(3):
        if at:
            run.steps(at - 1, at)
        text = recipes.to_yaml(recipe(schedule__base_lr=0.02 * (at + 1)))
        state = RunState(step=at, samples_seen=16 * at, tracking={"run": "abc"})
        saver.begin(checkpoint.snapshot(run.engine, state, extra={}, recipe=text, copied=True))
    saver.finish()
    save_file(run.engine.teacher.consolidated(), out / "teacher.safetensors")
    (out / "result.json").write_text("{}")


if __name__ == "__main__":
    main()

"""Writes checkpoints after each of three steps into OUT/checkpoints and keeps the last two; or
loads one into another architecture, which must fail."""

import json
import sys
from pathlib import Path

from poa_ds import checkpoint, engine
from poa_ds.checkpoint import RunState
from tests.distributed.worker import Run, recipe


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    if "load" in wanted:
        run = Run(0, recipe(heads__prototypes=[48, 80]))
        folder, _ = checkpoint.find(Path(wanted["load"]))
        checkpoint.load(run.engine, folder)
        return
    run = Run(0, recipe())
    for at in range(3):
        if at:
            run.steps(at - 1, at)
        checkpoint.save(
            run.engine,
            out / "checkpoints",
            RunState(step=at, samples_seen=16 * at, tracking={"run": "abc"}),
            extra={},
            recipe="",
            keep_last=2,
        )
    (out / "result.json").write_text("{}")


if __name__ == "__main__":
    main()

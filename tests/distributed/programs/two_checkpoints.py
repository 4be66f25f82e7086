"""Writes checkpoints after each of three steps into OUT/checkpoints and keeps the last two; or
says why some cannot be loaded: into another architecture, and such as hold no tensors."""

import json
import random
import sys
from pathlib import Path

from safetensors.torch import save_file

from poa_ds.checkpoint import state as checkpoint
from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import RunState
from poa_ds.engine import engine
from poa_ds.recipe import load
from poa_ds.system.errors import UserError
from tests.distributed.programs.worker import Run, recipe_with


def refusal(run: Run, root: Path) -> str:
    """What loading the newest checkpoint, which passes for whole, says; "" where it succeeds."""
    folder, _ = checkpoint.find_together(root)
    assert folder
    try:
        checkpoint.load(run.engine, folder)
    except UserError as error:
        return str(error)
    return ""


def scales(*, consecutive: bool) -> dict[str, list]:
    """fp16's loss scale over steps with overflows, and the same saved and continued after each.

    An engine in fp16 needs a GPU; its scaler does not.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    def fresh() -> DynamicLossScaler:
        settings = {"init_scale": 2.0**16, "scale_window": 3, "min_scale": 1.0, "delayed_shift": 2}
        return DynamicLossScaler(**settings, consecutive_hysteresis=consecutive)

    def follow(scaler: DynamicLossScaler, overflows: list[bool]) -> list[float]:
        found = []
        for overflow in overflows:
            scaler.update_scale(overflow)
            found.append(scaler.cur_scale)
        return found

    rng = random.Random(0)
    overflows = [rng.random() < 0.2 for _ in range(60)]
    continued = []
    for cut in range(len(overflows)):
        before, after = fresh(), fresh()
        start = follow(before, overflows[:cut])
        saved = json.dumps(engine.read_numbers(before, engine.SCALER))
        engine.set_numbers(after, json.loads(saved))
        continued.append(start + follow(after, overflows[cut:]))
    return {"whole": follow(fresh(), overflows), "continued": continued}


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    if "load" in wanted:
        said = [refusal(Run(0, recipe_with(heads__prototypes=[48, 80])), Path(wanted["load"]))]
        said += [refusal(Run(0, recipe_with()), Path(root)) for root in wanted["garbage"]]
        (out / "result.json").write_text(json.dumps(said))
        return
    run = Run(0, recipe_with())
    saver = Saver(out / "checkpoints", keep_last=2, keep_every_steps=0, background=True)
    for at in range(3):
        if at:
            run.steps(at - 1, at)
        text = load.to_yaml(recipe_with(schedule__base_lr=0.02 * (at + 1)))
        state = RunState(step=at, samples_seen=16 * at, tracking={"run": "abc"})
        saver.begin(checkpoint.snapshot(run.engine, state, extra={}, recipe=text, copied=True))
    saver.finish()
    save_file(run.engine.deployed(), out / "teacher.safetensors")
    result = [scales(consecutive=flag) for flag in (False, True)]
    (out / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()

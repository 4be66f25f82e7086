"""What the ranks of detection's tests run: a few steps of a detector, whole or stopped.

python -m tests.distributed.programs.detection OUT COCO whole|stopped|ranks ...
... OUT COCO command [measuring]
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from poa_ds.checkpoint.deployed import find_teacher, load_teacher, weights_hash
from poa_ds.cli import main as commands
from poa_ds.engine import engine
from poa_ds.evaluate.detection import annotations, pictures
from poa_ds.evaluate.detection import task as tasks
from poa_ds.evaluate.detection.model import Detecting
from poa_ds.evaluate.detection.settings import Settings
from poa_ds.evaluate.detection.task import Task
from poa_ds.evaluate.detection.training import Training
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.features import Readout
from poa_ds.model.space import Subnet
from poa_ds.system import dist

STEPS, SIZE = 3, Subnet(32, 2)
SETTINGS = Settings(
    epochs=2.0,
    lr=1e-3,
    layer_decay=0.7,
    drop_path=0.2,
    weight_decay=0.05,
    batch=4,
    slots=2,
    warmup_steps=1,
    short_sides=(56, 64),
    long_side=96,
    channels=16,
    seed=0,
)


def task(out: Path, root: Path) -> Task:
    model, recipe, step = load_teacher(out / "run")
    cpu = torch.device("cpu")
    teacher = find_teacher(out / "run")
    readout, weights = Readout.of(recipe, cpu), weights_hash(teacher)
    reader = Reader(teacher, model, recipe, step, [SIZE], readout, 8, 0, weights)
    train = annotations.read(*annotations.find(root, "train"), masks=True)
    return Task(reader, {SIZE: SETTINGS}, {}, train, train, False, "cascade", None, 1000)


def trained(job: Task, networks: Detecting, folder: Path, asked: list[int]) -> Training:
    recipe = job.reader.recipe
    training = Training(networks, recipe, SETTINGS, steps=STEPS, folder=folder)
    steps = range(training.state.step, STEPS)
    slots = pictures.to_learn_from(job.train, SETTINGS, masks=True, steps=steps, workers=0)
    assert training.run(slots, asked=asked, save_every=1000) == (not asked)
    return training


def stopped(found: Callable) -> Callable:
    """The same, and the last rank gets a signal as it begins."""

    def measuring(*args: object, **more: object) -> object:
        if dist.rank() == dist.world_size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return found(*args, **more)

    return measuring


def main(out: Path, root: Path, *words: str) -> None:
    if "command" in words:
        short = "--sizes 32x2,48x3 --batch 4 --slots 2 --short-side 64 --long-side 96 --channels 16"
        rest = f"--workers 0 --lr 0.001 --epochs 1 {short}".split()
        whole = ["eval", "detection", str(out / "run"), "--coco", str(root), *rest]
        if "measuring" not in words:
            sys.exit(commands(whole))
        tasks.found = stopped(tasks.found)
        sys.exit(commands(whole) != os.EX_TEMPFAIL)
    engine.start_processes("cpu")
    assert "mlflow" not in sys.modules  # DeepSpeed would bring it: seconds, and memory of each rank
    for word in words:
        job = task(out, root)
        networks = job.networks(SIZE)
        if word == "whole":
            start = {name: p.detach().clone() for name, p in networks.trained().items()}
            save_file(start, out / "start.safetensors")
        if word == "stopped":
            assert trained(job, networks, out / word, [15]).state.step == 1
            networks = job.networks(SIZE)
        training = trained(job, networks, out / word, [])
        tensors = training.engine.deployed()
        if dist.is_main():
            save_file(tensors, out / f"{word}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])

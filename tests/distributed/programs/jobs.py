"""A real training on several ranks that a test may disturb: each rank's process and its output."""

import subprocess
import sys
import time
from pathlib import Path

from tests.distributed.programs.launch import ROOT, environment, free_port
from tests.run.test_training import TINY

PATIENCE_SECONDS = 240.0  # a busy machine


def arguments(shards: Path, out: Path, *more: str) -> list[str]:
    """What stands behind `poa_ds.train`: a tiny recipe; long, unless `more` says otherwise."""
    data = [f"data.train={shards}/train", f"evaluation.queries={shards}/val"]
    recipe = ["--config", "ds_configs/photos.yaml", "--deepspeed_config", "ds_configs/zero2.json"]
    places = [*data, f"output_dir={out}"]
    return [*recipe, *TINY, "schedule.steps_per_epoch=1000", *places, *more]


class Job:
    """Processes whose output is watched."""

    def __init__(self, commands: list[list[str]], environments: list[dict], out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.logs = [out / f"output{i}.txt" for i in range(len(commands))]
        self.processes = []
        for command, variables, log in zip(commands, environments, self.logs, strict=True):
            with open(log, "w") as file:
                process = subprocess.Popen(
                    command, env=variables, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
                )
            self.processes.append(process)

    def said(self, rank: int = 0) -> str:
        return self.logs[rank].read_text()

    def until(self, text: str, rank: int = 0) -> None:
        """Wait until that rank has printed the text."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.said(rank):
            assert time.monotonic() < deadline, self.said(rank)
            assert self.processes[rank].poll() is None, self.said(rank)
            time.sleep(0.05)

    def signal(self, number: int, *ranks: int) -> None:
        for rank in ranks:
            self.processes[rank].send_signal(number)

    def statuses(self) -> list[int]:
        """How they ended, once they have."""
        return [process.wait(timeout=PATIENCE_SECONDS) for process in self.processes]

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # a stopped process dies of it as well
            process.wait()


def ranks(words: list[str], out: Path, world: int = 2) -> Job:
    """Ranks without a launcher, which would end the others."""
    port, command = free_port(), [sys.executable, "-u", "-m", "poa_ds.train", *words]
    return Job([command] * world, [environment(rank, world, port) for rank in range(world)], out)

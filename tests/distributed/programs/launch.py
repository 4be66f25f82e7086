"""Start real ranks over gloo, each a process with the variables that torchrun would set.

They are forked from one process that has imported what they need: that takes 5 seconds of each.
"""

import json
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 900  # a busy machine takes many times as long
_forks = multiprocessing.get_context("forkserver")
# the last one, which DeepSpeed's engine imports, imports much of torch's compiler
_forks.set_forkserver_preload(
    ["poa_ds.run.training", "deepspeed", "deepspeed.runtime.zero.muon.original_muon"]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables of one rank; one thread each, on the CPU."""
    return os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }


def launch(module: str, world: int, out: Path, **arguments: object) -> dict:
    """Run `module` on `world` ranks with arguments as JSON; what rank 0 wrote to out/result.json.

    A failing rank ends the others and shows its output.
    """
    out.mkdir(parents=True, exist_ok=True)
    port, words = free_port(), [str(out), json.dumps(arguments)]
    logs = [out / f"rank{rank}.log" for rank in range(world)]
    ranks = [
        fork(_run, environment(rank, world, port), log, module, words)
        for rank, log in enumerate(logs)
    ]
    try:
        for rank, process in enumerate(ranks):
            process.join(PATIENCE_SECONDS)
            if process.exitcode != 0:
                tails = "\n".join(
                    f"rank {r}: {log.read_text()[-3000:]}" for r, log in enumerate(logs)
                )
                raise AssertionError(f"rank {rank}: {process.exitcode}\n{tails}")
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return json.loads((out / "result.json").read_text())


def fork(
    target: Callable, variables: Mapping[str, str], log: Path, *arguments: object
) -> multiprocessing.Process:
    """A new process in which `target(*arguments)` runs with these variables; it writes to `log`."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read by what is imported first
    log.touch()
    process = _forks.Process(target=_begin, args=(target, dict(variables), log, arguments))
    process.start()
    return process


def _begin(target: Callable, variables: dict[str, str], log: Path, arguments: tuple) -> None:
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # this process would start its loaders as it was started, and import everything for each
    multiprocessing.set_start_method("fork", force=True)
    os.environ.clear()
    os.environ.update(variables)
    import torch  # it is there, and read the number of threads when it was imported

    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    os.chdir(ROOT)
    target(*arguments)


def _run(module: str, words: list[str]) -> None:
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__")

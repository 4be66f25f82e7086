"""Start real ranks over gloo, each a process with the variables that torchrun would set."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 900  # a busy machine takes many times as long


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
        # some virtual machines announce AMX and then trap on it (bf16 products)
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
    }


def launch(module: str, world: int, out: Path, **arguments: object) -> dict:
    """Run `module` on `world` ranks with arguments as JSON; what rank 0 wrote to out/result.json.

    A failing rank ends the others and shows its output.
    """
    out.mkdir(parents=True, exist_ok=True)
    port = free_port()
    words = [sys.executable, "-m", module, str(out), json.dumps(arguments)]
    logs = [open(out / f"rank{rank}.log", "w+") for rank in range(world)]
    ranks = [
        subprocess.Popen(
            words, env=environment(r, world, port), stdout=log, stderr=subprocess.STDOUT, cwd=ROOT
        )
        for r, log in enumerate(logs)
    ]
    try:
        failed = None
        for rank, process in enumerate(ranks):
            if process.wait(timeout=PATIENCE_SECONDS):
                failed = failed if failed is not None else rank
        if failed is not None:
            tails = "\n".join(f"rank {r}: {_tail(log)}" for r, log in enumerate(logs))
            raise AssertionError(f"rank {failed} failed\n{tails}")
    finally:
        for process in ranks:
            process.kill()
        for log in logs:
            log.close()
    return json.loads((out / "result.json").read_text())


def _tail(log: object) -> str:
    log.seek(0)
    return log.read()[-3000:]

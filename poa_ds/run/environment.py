"""Environment variables that should be alike on all ranks: what differs is said at the start.

`deepspeed --hostfile` carries few variables to the hosts, not even to the first one, and a missing
OMP_NUM_THREADS or NCCL_SOCKET_IFNAME costs speed or half an hour without a word.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import groupby

from poa_ds.system import dist
from poa_ds.system.console import say

# what changes speed, numbers or communication; nothing that may hold a password
PREFIXES = tuple(
    f"{name}_"
    for name in (
        "CUBLAS CUDA DS FI GLOO GOMP KMP LD MALLOC MKL NCCL NVIDIA OMP ONEDNN OPENBLAS POA PYTORCH"
        " TORCH TRITON UCX"
    ).split()
)
# each rank may have its own
OWN = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}
SHOWN = 4  # stretches of ranks with the same value


def of_interest(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that should be alike on all ranks."""
    names = (name for name in environment if name.startswith(PREFIXES) and name not in OWN)
    return {name: environment[name] for name in names}


def differences(environments: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each variable that is not the same on all ranks, given by rank."""
    lines = []
    for name in sorted({name for environment in environments for name in environment}):
        values = [environment.get(name) for environment in environments]
        if len(set(values)) > 1:
            lines.append(f"{name}: {_by_rank(values)}")
    return lines


def _by_rank(values: Sequence[str | None]) -> str:
    """`4 on ranks 0-7, not set on rank 8`."""
    said = []
    for value, found in groupby(enumerate(values), key=lambda pair: pair[1]):
        ranks = [rank for rank, _ in found]
        which = f"ranks {ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else f"rank {ranks[0]}"
        said.append(f"{'not set' if value is None else value or 'empty'} on {which}")
    more = [f"and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    return ", ".join(said[:SHOWN] + more)


def say_differences() -> None:
    """Print, on the main rank, which variables differ between the ranks. A collective."""
    lines = differences(dist.all_gather_objects(of_interest(os.environ)))
    if lines and dist.is_main():
        say(
            "warning: the environment is not the same on all ranks (.deepspeed_env carries it, see"
            " README):\n  " + "\n  ".join(lines)
        )

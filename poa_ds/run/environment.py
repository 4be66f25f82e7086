"""Environment variables that should be alike on all ranks: what differs is said at the start.

`deepspeed --hostfile` carries few variables to the hosts, not even to the first one, and a missing
OMP_NUM_THREADS or NCCL_SOCKET_IFNAME costs speed or half an hour without a word.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import groupby

from poa_ds.system import dist
from poa_ds.system.console import say

# what changes speed, numbers or communication
PREFIXES = tuple(
    f"{name}_"
    for name in (
        "ATEN CUBLAS CUDA DS FI GLOO GOMP KMP LD MALLOC MKL NCCL NVIDIA OMP ONEDNN OPENBLAS POA"
        " PYTORCH TORCH TRITON UCX"
    ).split()
)
# each rank may have its own
OWN = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"}
# their values cannot be secret: numbers, names of interfaces, switches; any other value (of
# NVIDIA_API_KEY, say) does not leave its rank
SPOKEN = frozenset(
    "ATEN_CPU_CAPABILITY CUDA_DEVICE_MAX_CONNECTIONS CUDA_LAUNCH_BLOCKING DS_ACCELERATOR"
    " FI_PROVIDER GLOO_SOCKET_IFNAME KMP_BLOCKTIME MALLOC_ARENA_MAX MKL_CBWR MKL_NUM_THREADS"
    " NCCL_ALGO NCCL_CROSS_NIC NCCL_DEBUG NCCL_IB_DISABLE NCCL_IB_HCA NCCL_NET_GDR_LEVEL"
    " NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_PROTO NCCL_SHM_DISABLE NCCL_SOCKET_IFNAME"
    " OMP_NUM_THREADS OMP_PLACES OMP_PROC_BIND ONEDNN_MAX_CPU_ISA OPENBLAS_NUM_THREADS"
    " PYTORCH_CUDA_ALLOC_CONF TORCH_NCCL_ASYNC_ERROR_HANDLING TRITON_INTERPRET UCX_NET_DEVICES"
    " UCX_TLS".split()
)
SHOWN = 4  # stretches of ranks with the same value


def of_interest(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that should be alike on all ranks; a digest where the value is not SPOKEN."""
    names = (name for name in environment if name.startswith(PREFIXES) and name not in OWN)
    return {n: environment[n] if n in SPOKEN else _digest(environment[n]) for n in names}


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()


def differences(environments: Sequence[Mapping[str, str]]) -> list[str]:
    """One line for each variable that is not the same on all ranks, given by rank."""
    lines = []
    for name in sorted({name for environment in environments for name in environment}):
        values = [environment.get(name) for environment in environments]
        if len(set(values)) > 1:
            lines.append(f"{name}: {_by_rank(values if name in SPOKEN else _numbered(values))}")
    return lines


def _numbered(values: Sequence[str | None]) -> list[str | None]:
    """`value 1` for the first one and those that equal it, and so on."""
    numbers = {
        value: f"value {number}"
        for number, value in enumerate(dict.fromkeys(filter(None, values)), 1)
    }
    return [None if value is None else numbers[value] for value in values]


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
            " docs/howto/cluster.md):\n  " + "\n  ".join(lines)
        )

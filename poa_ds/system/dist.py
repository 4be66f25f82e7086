"""Rank, world size and reductions; without a process group each is the identity of one process."""

import os
import threading
import time
from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor


def _active() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank() -> int:
    return torch.distributed.get_rank() if _active() else 0


def world_size() -> int:
    return torch.distributed.get_world_size() if _active() else 1


def is_main() -> bool:
    return rank() == 0


def all_sum(x: Tensor) -> Tensor:
    """Sum of x over the ranks, a new tensor; x itself without a process group."""
    if world_size() == 1:
        return x
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total


def all_max(x: Tensor) -> Tensor:
    """Element-wise maximum of x over the ranks; x itself without a process group."""
    if world_size() == 1:
        return x
    largest = x.clone()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return largest


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is up on any rank: the same answer everywhere."""
    if world_size() == 1:
        return flag
    return bool(all_max(torch.tensor(float(flag), device=device)).item())


def all_gather_objects(value: object) -> list:
    """The value of every rank, in rank order. For small host-side records."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def broadcast_object(value: object) -> object:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    if world_size() > 1:
        torch.distributed.barrier()


def roll_call(answer: str, seconds: float) -> dict[int, str] | None:
    """What each rank has answered after some seconds; None where rank 0's store is silent.

    For a run that hangs: a connection of its own to the store of the rendezvous, no collective.
    """
    if world_size() == 1:
        return {0: answer}
    found: list[dict[int, str]] = []

    def ask() -> None:
        place = "poa_ds/roll_call/{}".format
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(address, port, is_master=False)
        store.set(place(rank()), answer)
        time.sleep(seconds)
        there = [r for r in range(world_size()) if store.check([place(r)])]
        found.append({r: store.get(place(r)).decode() for r in there})

    # a thread: no time-out of the store ends the wait for a server whose process is stopped
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * seconds)
    return found[0] if found else None


def complete_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The rendezvous variables that any launcher's environment amounts to.

    torchrun and deepspeed set them; under srun they come from SLURM_*; a plain python is one
    process on a free port.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if all(name in environment for name in names):
        found = {name: environment[name] for name in names}
    elif "SLURM_PROCID" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
        slurm = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        found = dict(zip(names, (environment[name] for name in slurm), strict=True))
    else:
        found = dict(zip(names, ("0", "1", "0"), strict=True))
    alone = found["WORLD_SIZE"] == "1"
    found["MASTER_ADDR"] = environment.get("MASTER_ADDR") or _master(environment)
    found["MASTER_PORT"] = environment.get("MASTER_PORT") or ("0" if alone else "29500")
    return found


def _master(environment: Mapping[str, str]) -> str:
    """The first host of a Slurm job (`node[03-05,9]` -> node03), else this one."""
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    if not nodes or environment.get("SLURM_NTASKS", "1") == "1":
        return "127.0.0.1"
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return nodes.split(",")[0]
    first = rest.split("]")[0].split(",")[0].split("-")[0]
    return head + first


def prepare_environment() -> None:
    """Set the rendezvous variables of this process, whatever started it."""
    os.environ.update(complete_environment(os.environ))

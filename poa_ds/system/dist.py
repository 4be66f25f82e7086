"""Rank, world size and reductions; without a process group each is the identity of one process."""

import os
import threading
import time
from typing import Any

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


def all_rows(x: Tensor) -> Tensor:
    """x of all ranks, of equal shapes, along the first axis in rank order."""
    if world_size() == 1:
        return x
    rows = x.new_empty(world_size() * len(x), *x.shape[1:])
    torch.distributed.all_gather_into_tensor(rows, x.contiguous())
    return rows


def on_host(x: Tensor) -> Any:
    """The numbers of x, nested as its dimensions are, where x is what a collective gave.

    NCCL's return at once: here a rank waits for the others, and the watchdog knows this place.
    """
    return x.tolist()


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is up on any rank: the same answer everywhere."""
    if world_size() == 1:
        return flag
    return bool(on_host(all_max(torch.tensor(float(flag), device=device))))


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

    For a run that hangs, during set-up too: a connection of its own to the store of the
    rendezvous, no collective.
    """
    rank, world = (
        int(os.environ.get(name, one)) for name, one in (("RANK", "0"), ("WORLD_SIZE", "1"))
    )
    if world == 1:
        return {0: answer}
    found: list[dict[int, str]] = []

    def ask() -> None:
        place = "poa_ds/roll_call/{}".format
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(address, port, is_master=False)
        store.set(place(rank), answer)
        time.sleep(seconds)
        there = [r for r in range(world) if store.check([place(r)])]
        found.append({r: store.get(place(r)).decode() for r in there})

    # a thread: no time-out of the store ends the wait for a server whose process is stopped
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * seconds)
    return found[0] if found else None

"""What happens before there is an engine."""

import sys

import pytest
import torch

from poa_ds.engine import engine
from poa_ds.run import environment
from poa_ds.system import dist
from poa_ds.system.errors import UserError


def test_a_process_takes_its_gpu_before_its_first_collective(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Collectives of objects use the current device: else all ranks would meet on the first GPU."""
    import deepspeed

    done: list[tuple[str, object]] = []

    def gathered(values: list, value: object) -> None:
        done.append(("gather", None))
        values[:] = [value, value]

    for name, text in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, text)
    monkeypatch.setattr(torch.cuda, "set_device", lambda i: done.append(("device", i)))
    monkeypatch.setattr(
        deepspeed, "init_distributed", lambda backend, **_: done.append(("join", backend))
    )
    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: 1)
    engine.start_processes("cuda")
    environment.say_differences()
    assert done == [("device", 1), ("join", "nccl"), ("gather", None)]


def test_a_rank_that_sees_one_gpu_alone_is_told_how_to_see_all(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert engine.pick_device() == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match=r"local rank 3 has no GPU: 1 visible.*--gpus-per-node"):
        engine.pick_device()


def test_a_hidden_package_is_there_again_afterwards() -> None:
    """Of the standard library, and one that nothing else here needs."""
    sys.modules.pop("this", None)
    with engine.hidden("this"), pytest.raises(ImportError):
        import this  # noqa: F401
    with pytest.raises(KeyError), engine.hidden("this"):
        raise KeyError
    assert "this" not in sys.modules

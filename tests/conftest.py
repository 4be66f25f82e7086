"""Where tests find the reference numbers and images that the repository does not contain."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the first kernel is defined

# some virtual machines announce AMX and then trap on it (bf16 products)
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# a busy machine is no fault of a test
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# a run of a test must not go to the MLflow store of whoever starts the tests
for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
    os.environ.pop(name, None)

# shells let background jobs ignore Ctrl-C, and so would every program that a test starts
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("POA_SHARED", Path(__file__).parents[2] / "shared"))


def shared(path: str) -> Path:
    """The file or folder of the reference data; the test is skipped where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{found} is absent: set POA_SHARED to the folder of reference data")
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo first: it takes longest, and at the end nothing would be left to do beside it."""
    items.sort(key=lambda item: item.path.name != "test_demo.py")


@pytest.fixture(autouse=True)
def rendezvous() -> Iterator[None]:
    """Whatever joins a process group sets these for its process: the next test has its own."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)

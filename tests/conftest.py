"""Where tests find the reference numbers and images that the repository does not contain."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the first kernel is defined

SHARED = Path(os.environ.get("POA_SHARED", Path(__file__).parents[2] / "shared"))


def shared(path: str) -> Path:
    """The file or folder of the reference data; the test is skipped where it is absent."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{found} is absent: set POA_SHARED to the folder of reference data")
    return found

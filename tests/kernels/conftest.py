"""Kernel tests: Triton's interpreter on the CPU, the machine's own kernels where there is a GPU.

What an operator allocates and does not write is NaN in these tests.
"""

from collections.abc import Iterator

import pytest
import torch

from poa_kernels import dispatch, language


@pytest.fixture(autouse=True)
def triton_over_poisoned_memory() -> Iterator[None]:
    reason = dispatch.unable(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if reason:
        pytest.skip(f"no kernel can run: {reason} (installed: {language.INSTALLED})")
    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors are filled with NaN
    assert torch.empty(3).isnan().all()
    with dispatch.using("triton"):
        yield
    torch.use_deterministic_algorithms(False)

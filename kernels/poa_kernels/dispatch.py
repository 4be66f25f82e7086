"""Which implementation an operator runs, and with which tiles: by mode, device and table.json.

The table says per chip what the benchmark found. "auto" follows it; where nothing was measured
it runs what PyTorch has.
"""

import contextlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from poa_kernels.compiled import is_on, switch
from poa_kernels.language import DTYPES, INSTALLED, INTERPRETED

Mode = Literal["auto", "reference", "triton"]
OURS = ("triton", "descriptors")  # what Triton compiles
TABLE = Path(__file__).with_name("table.json")
_mode: Mode = "auto"  # of this process, like torch.backends


def select(mode: Mode, device: torch.device | str, *, compiled: bool = False) -> str:
    """Sets what the operators of this process run; a sentence about it for the user.

    compiled: the plain functions go through torch.compile. ValueError: "triton" on a device where
    no kernel can run.
    """
    global _mode
    assert mode in get_args(Mode), mode
    reason = unable(torch.device(device))
    if mode == "triton" and reason:
        raise ValueError(f"kernels: triton is impossible here ({reason}); allowed: auto, reference")
    _mode = mode
    switch(compiled)
    return describe(torch.device(device))


@contextlib.contextmanager
def using(mode: Mode) -> Iterator[None]:
    """The mode within a `with` block, for tests and benchmarks."""
    global _mode
    before, _mode = _mode, mode
    try:
        yield
    finally:
        _mode = before


def unable(device: torch.device) -> str:
    """Why Triton kernels cannot run on the device; empty if they can."""
    if not INSTALLED:
        return "triton is not installed"
    if device.type == "cuda":
        return "" if torch.cuda.get_device_capability(device) >= (8, 0) else "older than sm_80"
    return "" if INTERPRETED else f"the device is {device.type}"


def choose(operator: str, x: Tensor, *, shape: str = "", otherwise: str = "reference") -> str:
    """What `operator` runs for x: "reference", "triton", or for a product "library", "descriptors".

    shape: a class of shapes that may have a line of its own in the table ("operator/shape").
    otherwise: what runs in "auto" where the table asks for a kernel that x cannot have.
    """
    return _choose(_mode, operator, x.dtype, x.device, shape, otherwise)


@cache  # asked several times per layer and step
def _choose(
    mode: Mode, operator: str, dtype: torch.dtype, device: torch.device, shape: str, otherwise: str
) -> str:
    if mode == "reference":
        return "reference"
    able = dtype in DTYPES and not unable(device)
    if mode == "triton":
        assert able, f"{operator}: no kernel for {dtype} on {device}"
        return "triton"
    found = entry(chip(device), operator, shape)["use"]
    if found not in OURS or (able and measured(device)):
        return found
    return otherwise


def tiles(operator: str, x: Tensor, *, shape: str = "") -> dict[str, int]:
    """Block sizes, warps and stages of the operator's kernel."""
    return dict(entry(chip(x.device), operator, shape)["tiles"])


def entry(chip_name: str, operator: str, shape: str = "") -> dict:
    """The line of the table; a newer chip uses sm_90's tiles and no measured choice."""
    lines = table()[chip_name]
    return lines.get(f"{operator}/{shape}") or lines[operator]


@cache
def table() -> dict[str, dict]:
    """table.json: chip -> operator -> {"use", "tiles", "measured"}."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def text_of(lines: dict[str, dict]) -> str:
    """The table as it is written: one line per operator."""
    chips = [
        f" {json.dumps(name)}: {{\n"
        + ",\n".join(f"  {json.dumps(key)}: {json.dumps(line)}" for key, line in entries.items())
        + "\n }"
        for name, entries in lines.items()
    ]
    return "{\n" + ",\n".join(chips) + "\n}\n"


@cache
def measured(device: torch.device) -> bool:
    """Whether the table's choices were made for this chip: others have less shared memory."""
    if device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(device) in ((8, 0), (9, 0))


@cache
def chip(device: torch.device) -> str:
    """The part of the table that serves a device: "interpreter", "sm_80" or "sm_90"."""
    if device.type != "cuda":
        return "interpreter"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] >= 9 else "sm_80"


def describe(device: torch.device) -> str:
    """What runs, in one sentence."""
    return _kernels(device) + ("; plain functions are compiled" if is_on() else "")


def _kernels(device: torch.device) -> str:
    reason = unable(device)
    if _mode == "reference":
        return "reference: plain PyTorch"
    if _mode == "triton":
        return f"triton: for every operator, with the tiles of {chip(device)}"
    if reason:
        return f"auto: plain PyTorch ({reason})"
    ours = [name for name, line in table()[chip(device)].items() if line["use"] in OURS]
    return f"auto: Triton on {chip(device)} for {', '.join(ours) or 'nothing, not measured there'}"

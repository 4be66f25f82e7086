"""python -m poa_ds.bench.gpu.machine FILE: what is here, and how fast its memory and products are.

The rates are the ceilings that other figures are held against; on a CPU there are none.
"""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import torch

from poa_ds.bench import report as bench_report
from poa_ds.bench.gpu.figures import COPY, PRODUCT
from poa_ds.system import files
from poa_ds.system.console import tell
from poa_kernels import bench as kernel_bench

PACKAGES = ("torch", "triton", "deepspeed", "numpy")
DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def identity() -> dict[str, str]:
    """What must be the same for figures to stand side by side; `device` is cuda or cpu."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"device": device, "processor": bench_report.machine(device).processor}
    return found | {"python": platform.python_version()} | {n: _version(n) for n in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def main(arguments: Sequence[str]) -> int:
    [path] = arguments
    found: dict[str, float | str] = dict(identity())
    found["cores"] = bench_report.machine(str(found["device"])).cores
    if found["device"] == "cuda":
        found |= {"driver": _driver(), "CUDA of torch": torch.version.cuda or ""}
        free, total = torch.cuda.mem_get_info()
        found |= {"memory, GiB": total / 2**30, "of it free, GiB": free / 2**30}
        ceilings = kernel_bench.ceilings()
        found |= {COPY: ceilings.tbytes, PRODUCT: ceilings.tflops}
    for name, value in found.items():
        tell(f"{name:24}{value}")
    files.replace_text(Path(path), json.dumps(found, indent=1) + "\n")
    return 0


def _driver() -> str:
    """Of the first GPU; where nvidia-smi is not installed nobody tells."""
    if not shutil.which(DRIVER[0]):
        return "not known, there is no nvidia-smi"
    done = subprocess.run(DRIVER, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

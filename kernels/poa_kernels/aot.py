"""python -m poa_kernels.aot: compile every kernel of the table for each chip, without a GPU.

Fails on registers that spill, on more shared memory than a block can have, and where a product
does not run on the tensor cores. Triton's cache makes a second run quick.
"""

import argparse
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from poa_kernels.language import INSTALLED, INTERPRETED, Case

CHIPS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
TILES = {"sm_80": "sm_80", "sm_90": "sm_90", "sm_100": "sm_90"}  # whose each chip has
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes, CUDA programming guide
PRODUCT = {80: "hmma", 90: "hgmma", 100: "utcmma"}  # the fastest instruction of each chip
OPERATORS = (
    *("two_stream_linear", "two_stream_descriptors", "attention", "rope", "add_ln", "gelu"),
    *("sinkhorn", "prototype_ce", "photometric"),
)
COUNTED = {  # instructions of the machine code
    "hgmma": r"\bHGMMA",  # Hopper's matrix product
    "hmma": r"\bHMMA",
    "utcmma": r"\bUTC\w*MMA",  # Blackwell's, by one thread for a block
    "copies": r"\bLDGSTS|\bUTMALDG",  # asynchronous copies to shared memory
    "spills": r"\bSTL\b",
}


@dataclass(frozen=True)
class Report:
    """What the machine code of one kernel needs. complaint: empty if all is well."""

    name: str
    chip: str
    registers: int
    shared: int
    spills: int
    hgmma: int
    hmma: int
    utcmma: int
    copies: int
    complaint: str


def cases(chip: str) -> Iterator[Case]:
    """Every kernel in the table's configurations for the chip."""
    for name in OPERATORS:
        yield from importlib.import_module(f"poa_kernels.{name}").cases(TILES[chip])


def build(case: Case, chip: str) -> Report:
    """Compile one kernel and look at its machine code."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_source

    names, capability = case.kernel.arg_names, CHIPS[chip]
    place = {name: (i,) for i, name in enumerate(names)}
    types = {n: "constexpr" if n in case.constants else case.types[n] for n in names}
    aligned = [n for n, t in types.items() if t.startswith("*") or n in case.sixteens]
    source = ASTSource(
        fn=case.kernel,
        signature=types,
        constexprs={place[n]: value for n, value in case.constants.items()},
        attrs={place[n]: [["tt.divisibility", 16]] for n in aligned},
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    built = compile_source(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage, code = _disassemble(built.asm["cubin"])
    counts = {name: len(re.findall(pattern, code)) for name, pattern in COUNTED.items()}
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    complaint = _complaint(case, capability, built.metadata.shared, counts)
    shared = built.metadata.shared
    return Report(case.name, chip, registers, shared, **counts, complaint=complaint)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """(resource usage, machine code) by the cuobjdump that comes with Triton."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        texts = [
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True)
            for option in ("-res-usage", "-sass")
        ]
    return texts[0].stdout, texts[1].stdout


def _complaint(case: Case, capability: int, shared: int, counts: dict[str, int]) -> str:
    wrong = []
    if counts["spills"]:
        wrong.append(f"spills registers {counts['spills']} times")
    if shared > SHARED_LIMIT[capability]:
        wrong.append(f"{shared} bytes of shared memory, {SHARED_LIMIT[capability]} allowed")
    if case.products:
        wanted = PRODUCT[capability]
        if not counts[wanted]:
            wrong.append(f"no {wanted.upper()} instruction")
        for other in PRODUCT.values():
            if other != wanted and counts[other]:
                instead = f"instructions instead of {wanted.upper()}"
                wrong.append(f"{counts[other]} {other.upper()} {instead}")
    return "; ".join(wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m poa_kernels.aot", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--chip", choices=CHIPS, action="append", help="default: all")
    parser.add_argument("--json", type=Path, help="also write the reports to this file")
    options = parser.parse_args(arguments)
    if not INSTALLED or INTERPRETED:
        print("aot: needs triton, and TRITON_INTERPRET unset", file=sys.stderr)
        return 2
    head = ("kernel", "chip", "regs", "shared", "spills", "HGMMA", "HMMA", "UTCMMA", "copies")
    print(f"{head[0]:44}" + "".join(f"{name:>8}" for name in head[1:]))
    reports = []
    for chip in options.chip or CHIPS:
        for case in cases(chip):
            if options.only in case.name:
                reports.append(build(case, chip))
                print(_line(reports[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in reports], indent=1) + "\n")
    bad = sum(bool(r.complaint) for r in reports)
    by = f"by triton {importlib.metadata.version('triton')}"
    print(f"{len(reports)} kernels compiled {by}, {bad} with a complaint (not run on a GPU)")
    return 1 if bad or not reports else 0


def _line(r: Report) -> str:
    numbers = (r.registers, r.shared, r.spills, r.hgmma, r.hmma, r.utcmma, r.copies)
    cells = "".join(f"{value:>8}" for value in (r.chip, *numbers))
    return f"{r.name:44}{cells}{'  ' + r.complaint if r.complaint else ''}"


if __name__ == "__main__":
    sys.exit(main())

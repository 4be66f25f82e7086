"""python -m poa_ds.bench.gpu.table FOLDER TABLE TESTS: the table, where two measurements agree.

FOLDER has NAME.1.json and NAME.2.json, the records of two runs of `python -m poa_kernels.bench`,
and the tables that these wrote, NAME.1.table.json and NAME.2.table.json. TABLE is to be written.
TESTS has the outcome of the kernel tests: no line is new unless they have passed here.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poa_ds.bench.gpu import figures
from poa_ds.system import files
from poa_ds.system.console import tell
from poa_kernels import dispatch

AGREE = 0.03  # of a time, between the two measurements
Lines = dict[str, dict[str, Any]]  # of one chip: operator -> its line


@dataclass(frozen=True)
class Measured:
    """One run of the bench: its record, and the lines that it wrote for this chip."""

    record: Mapping[str, Any]
    lines: Lines

    def operators(self) -> list[str]:
        """The lines that this run decides."""
        return list(dict.fromkeys(n for names in self.record["lines"].values() for n in names))

    def best(self, operator: str) -> dict[str, float]:
        """(comparison, ours or PyTorch's) -> ms of the best, of what decides the line."""
        found: dict[str, float] = {}
        for figure in self.record["figures"]:
            comparison, ms = figure["comparison"], figure["milliseconds"]
            if operator in self.record["lines"][comparison] and not figure["wrong"] and ms:
                whose = "ours" if figure["contender"] in dispatch.OURS else "PyTorch's"
                name = f"{comparison}, {whose}"
                found[name] = min(ms, found.get(name, ms))
        return found


def disagreement(operator: str, first: Measured, second: Measured) -> str:
    """Why the two runs together decide nothing about the operator; empty where they do."""
    uses = [measured.lines[operator]["use"] for measured in (first, second)]
    if uses[0] != uses[1]:
        return f"first {uses[0]}, then {uses[1]}"
    times, again = first.best(operator), second.best(operator)
    if times.keys() != again.keys():
        return "the two runs have not measured the same"
    for name, ms in times.items():
        apart = abs(again[name] / ms - 1)
        if apart > AGREE:
            return f"{name}: {ms:.4g} ms, then {again[name]:.4g} ms, {100 * apart:.1f} % apart"
    return ""


def main(arguments: Sequence[str]) -> int:
    folder, target, tests = map(Path, arguments)
    passed = tests.exists() and figures.read(tests).get("tests", {}).get("status") == "done"
    chip, table = _chip(), json.loads(dispatch.TABLE.read_text(encoding="utf-8"))
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.1.table.json")):
        name = path.name.removesuffix(".1.table.json")
        if not (folder / f"{name}.2.table.json").exists():
            tell(f"{name}: measured once only")
            continue
        first, second = (_measured(folder, f"{name}.{n}", chip) for n in (1, 2))
        for operator in first.operators():
            why = disagreement(operator, first, second)
            why = why if passed else "the kernel tests have not passed here"
            line = first.lines[operator]
            found[operator] = f"as before: {why}" if why else f"{line['use']}, measured twice"
            if not why:
                table[chip][operator] = line
            tell(f"{operator}: {found[operator]}")
    files.replace_text(target, dispatch.text_of(table))
    files.replace_text(target.with_suffix(".decisions.json"), json.dumps(found, indent=1) + "\n")
    return 0


def _chip() -> str:
    import torch

    return dispatch.chip(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _measured(folder: Path, name: str, chip: str) -> Measured:
    record = figures.read(folder / f"{name}.json")
    return Measured(record, figures.read(folder / f"{name}.table.json")[chip])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

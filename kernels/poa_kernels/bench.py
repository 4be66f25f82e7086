"""python -m poa_kernels.bench: each operator beside PyTorch's and the published way, then the step.

Runs the kernel tests first and refuses where one fails. Prints ms, ratio to the first contender,
TFLOP/s and TB/s with their share of what a copy and a product reach here, GiB, error; a contender
whose error is too large is called wrong, never wins, and the exit status is 1. The whole training
step is measured by `poa-ds bench step`, at the shapes of the ViT-L recipe. Both print tables for
BENCHMARKS.md. --json is written anew after each comparison.
--smoke: tiny sizes in the interpreter on the CPU; checks the code and the errors, not the times.
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "kernels"
SMOKE_STEP = ["--steps", "1", "--warmup", "1", "batch.slots=1", "batch.images_per_slot=2"]
HEAD = ("ms", "ratio", "TFLOP/s", "% product", "TB/s", "% copy", "GiB", "error")


@dataclass(frozen=True)
class Figure:
    """One contender of one comparison. Shares are of the ceilings measured in the same run."""

    comparison: str
    contender: str
    milliseconds: float
    ratio: float
    tflops: float
    product_share: float
    tbytes: float
    copy_share: float
    peak_gib: float
    error: float
    wrong: bool = False


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches: a product of 8192 x 8192 matrices, a copy of 4 GiB."""

    tflops: float
    tbytes: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m poa_kernels.bench", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--smoke", action="store_true", help="tiny, in the interpreter")
    parser.add_argument("--only", default="", help="comparisons whose name contains this; no step")
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument("--no-tests", action="store_true", help="the kernel tests passed here")
    parser.add_argument("--write-table", action="store_true", help="let the result decide `auto`")
    parser.add_argument("--table", type=Path, metavar="FILE", help="for --write-table; not the own")
    options = parser.parse_args(arguments)
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of a kernel
    from poa_kernels import dispatch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.smoke and (reason := dispatch.unable(device)):
        print(f"bench: no kernel can run, {reason}; --smoke runs on the CPU", file=sys.stderr)
        return 2
    if options.smoke and options.write_table:
        print("bench: --smoke measures nothing to write into the table", file=sys.stderr)
        return 2
    if not (options.smoke or options.no_tests or _tests_pass()):
        print("bench: no figures, because the kernel tests fail", file=sys.stderr)
        return 1
    machine = "CPU, interpreter" if options.smoke else torch.cuda.get_device_name()
    record = {"machine": machine, "torch": torch.__version__, "host": platform.platform()}
    record |= {"smoke": options.smoke, "figures": [], "lines": {}, "step": None}
    figures = _all(options, Ceilings(math.nan, math.nan) if options.smoke else ceilings(), record)
    if not options.only:
        record["step"] = _step(smoke=options.smoke)
        _keep(record, options.json)
    wrong = [f"{f.comparison}, {f.contender}: error {f.error:.1e}" for f in figures if f.wrong]
    if wrong:
        print("bench: wrong:", *wrong, sep="\n  ", file=sys.stderr)
    return 1 if wrong or not figures else 0


def _keep(record: dict, path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _step(*, smoke: bool) -> dict:
    """The record of `poa-ds bench step` over all ways to compute it."""
    recipe, words = ("vit_l16_in1k", ["batch.slots=1"]) if not smoke else ("photos", SMOKE_STEP)
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "step.json"
        command = [sys.executable, "-m", "poa_ds.cli", "bench", "step", "--against", "all"]
        command += ["--config", recipe, "--json", str(record)]
        # without the interpreter, in which a whole step takes a minute
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        subprocess.run([*command, *words], check=True, env=environment)
        return json.loads(record.read_text())


def _record(figure: Figure) -> dict[str, str | float | None]:
    """The figure for JSON: what was not measured is null."""
    values = asdict(figure).items()
    return {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in values}


def _tests_pass() -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    if importlib.util.find_spec("xdist"):  # most of the time is compilation, on one core each
        command += ["-n", str(min(12, len(os.sched_getaffinity(0))))]
    return subprocess.run([*command, str(TESTS)], cwd=ROOT).returncode == 0


def _all(options: argparse.Namespace, ceilings: Ceilings, record: dict) -> list[Figure]:
    """Every comparison, printed and kept at once."""
    from poa_kernels import comparisons, dispatch

    device, dtype = ("cpu", torch.float32) if options.smoke else ("cuda", torch.bfloat16)
    torch.manual_seed(0)
    figures, decided = [], {}
    print(_row("", *HEAD), _row(":---", *["---:"] * len(HEAD)), sep="\n")
    for comparison in comparisons.all_of(comparisons.Scene(device, dtype, options.smoke)):
        if options.only not in comparison.name:
            continue
        found = compare(comparison, ceilings, smoke=options.smoke)
        for figure in found:
            print(line(figure), flush=True)
        figures += found
        record["figures"] += [_record(figure) for figure in found]
        record["lines"][comparison.name] = list(comparison.lines)
        _keep(record, options.json)
        for name in comparison.lines:
            decided.setdefault(name, []).append(winner(found, comparison.threshold))
    if options.write_table:
        chip, machine = dispatch.chip(torch.device(device)), torch.cuda.get_device_name()
        write_table(decided, options.table or dispatch.TABLE, chip=chip, machine=machine)
    return figures


def compare(comparison, ceilings: Ceilings, *, smoke: bool) -> list[Figure]:
    """A figure per contender.

    Errors are relative to the truth; one is wrong above twice that of the first contender.
    """
    torch._dynamo.reset()  # a size that was compiled before would make this one's dynamic
    runs = comparison.contenders | ({} if smoke else comparison.compiled)
    expected = [x.double() for x in comparison.truth()]
    figures: list[Figure] = []
    for name, run in runs.items():
        error = max(_error(x, y) for x, y in zip(run(), expected, strict=True))
        allowed = comparison.floor + 2 * (figures[0].error if figures else error)
        wrong = not error <= allowed  # NaN is
        ms, peak = (math.nan, math.nan) if smoke else (_median_ms(run), _peak_gib(run))
        ratio = figures[0].milliseconds / ms if figures else 1.0
        tflops, tbytes = comparison.flops / ms / 1e9, comparison.bytes / ms / 1e9
        speed = (tflops, 100 * tflops / ceilings.tflops, tbytes, 100 * tbytes / ceilings.tbytes)
        figures.append(Figure(comparison.name, name, ms, ratio, *speed, peak, error, wrong))
    return figures


def _error(got, expected) -> float:
    size = expected.norm().item()
    return (got.double() - expected).norm().item() / size if size else 0.0


def _median_ms(run: Callable, repeats: int = 15) -> float:
    """Median of event-timed runs."""
    for _ in range(3):
        run()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def _peak_gib(run: Callable) -> float:
    """Memory above what is held before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - held) / 2**30


def ceilings() -> Ceilings:
    a = torch.empty(1 << 30, device="cuda", dtype=torch.int32).random_()
    b = torch.empty_like(a)
    tbytes = 8 * a.numel() / _median_ms(lambda: b.copy_(a)) / 1e9
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    tflops = 2 * 8192**3 / _median_ms(lambda: x @ x.t()) / 1e9
    print(f"{torch.cuda.get_device_name()}: product {tflops:.0f} TFLOP/s, copy {tbytes:.2f} TB/s")
    return Ceilings(tflops, tbytes)


def line(f: Figure) -> str:
    """One row of the printed Markdown table."""
    cells = (f.milliseconds, f.ratio, f.tflops, f.product_share, f.tbytes, f.copy_share, f.peak_gib)
    numbers = (f"{x:.3g}" if x and math.isfinite(x) else "-" for x in (*cells, f.error))
    return _row(f"{f.comparison}, {f.contender}{' (wrong)' if f.wrong else ''}", *numbers)


def _row(first: str, *others: str) -> str:
    return f"| {first:44} | " + " | ".join(f"{cell:>9}" for cell in others) + " |"


def winner(figures: Sequence[Figure], threshold: float) -> str:
    """Which kernel beats all of PyTorch's ways by the threshold with at most twice their error.

    Empty: none does. Wrong ones are not counted.
    """
    from poa_kernels import dispatch

    right = [f for f in figures if not f.wrong]
    ours = [f for f in right if f.contender in dispatch.OURS]
    others = [f for f in right if f.contender not in dispatch.OURS]
    if not ours:
        return ""
    best = min(ours, key=lambda f: f.milliseconds)
    fast = min(f.milliseconds for f in others) >= threshold * best.milliseconds
    exact = best.error <= 2 * max(max(f.error for f in others), 1e-6)
    return best.contender if fast and exact else ""


def write_table(decisions: dict[str, list[str]], path: Path, *, chip: str, machine: str) -> None:
    """Puts what won in every size into the lines of a chip that were measured."""
    from poa_kernels import dispatch

    table = json.loads(dispatch.TABLE.read_text(encoding="utf-8"))
    lines = table[chip]
    for name, winners in decisions.items():
        general = lines[name.partition("/")[0]]
        pytorch = "library" if name.startswith("two_stream") else "reference"
        use = winners[0] if len(set(winners)) == 1 and winners[0] else pytorch
        lines[name] = general | {"use": use, "measured": machine}
    path.write_text(dispatch.text_of(table), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

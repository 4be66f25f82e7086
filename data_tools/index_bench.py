"""`poa-ds bench index`: what very many samples cost: index build, start-up, memory of workers.

The samples are tiny and made for it, so that the images themselves weigh nothing.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from data_tools.foreign import index_folder
from data_tools.parallel import processors
from data_tools.tars import Limits, Packed, Writer
from poa_ds.data.image.pixels import png
from poa_ds.data.store.index import INDEX, ShardFolder
from poa_ds.data.store.manifest import MANIFEST
from poa_ds.system import arguments, paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError
from poa_ds.system.progress import progress

READS = 2000  # of each worker, at random
MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds bench index`."""
    parser.add_argument(
        "--samples", type=arguments.count, default=1_000_000, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=arguments.counts,
        default="1,2,4,8",
        metavar="N,N",
        help="processes that read at once (%(default)s)",
    )
    parser.add_argument(
        "--place",
        type=paths.path,
        help="where 1.1 kB per sample is free (default: temporary folder)",
    )


@dataclass(frozen=True)
class Memory:
    """MiB of one process: its own, and its share of everything."""

    private: float
    proportional: float


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.place is not None and not args.place.is_dir():
        raise UsageError(f"--place {args.place}: no such folder")
    place = Path(tempfile.mkdtemp(dir=args.place, prefix="bench-index-"))
    try:
        _make(place, args.samples)
        begun, cpu = time.perf_counter(), time.process_time()
        index_folder(place, None, workers=1)
        build, build_cpu = time.perf_counter() - begun, time.process_time() - cpu
        opened = [_seconds_to_open(place) for _ in range(5)]
        size = (place / INDEX).stat().st_size
        rows = [(count, _readers(place, count)) for count in args.workers]
    finally:
        shutil.rmtree(place)
    tell(
        f"{args.samples:,} samples on {platform.machine()}, {processors()} cores, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    tell(
        f"index build, one process: {build:.1f} s, {1e6 * build_cpu / args.samples:.0f} us of "
        f"processor per sample; {size / MIB:.1f} MiB"
    )
    what = "checksum of the index, size and last header of all shards"
    tell(f"start ({what}): {1000 * min(opened):.0f} ms")
    for count, found in rows:
        own = statistics.mean(memory.private for memory in found)
        whole = sum(memory.proportional for memory in found)
        tell(f"{count} workers: {own:.1f} MiB of its own each, {whole:.1f} MiB together")
    return 0


def _make(place: Path, samples: int) -> None:
    image = png(np.zeros((1, 1, 3), np.uint8))
    with Writer(place, Limits(images=10_000)) as writer:
        for number in progress(range(samples), total=samples, label="making", unit="images"):
            writer.add(Packed(f"{number:08d}", "png", image, -1, None))
        writer.finish((), {}, rejected=0)
    for name in (MANIFEST, INDEX):
        (place / name).unlink()


def _seconds_to_open(place: Path) -> float:
    begun = time.perf_counter()
    ShardFolder.open(place)
    return time.perf_counter() - begun


def _readers(place: Path, count: int) -> Sequence[Memory]:
    """The memory of `count` processes that read at random, forked as a DataLoader forks them."""
    folder = ShardFolder.open(place)
    context = multiprocessing.get_context("fork")
    barrier, pipes = context.Barrier(count), [context.Pipe(duplex=False) for _ in range(count)]
    readers = [
        context.Process(target=_read, args=(folder, seed, barrier, send))
        for seed, (_, send) in enumerate(pipes)
    ]
    for reader in readers:
        reader.start()
    found = [receive.recv() for receive, _ in pipes]
    for reader in readers:
        reader.join()
    return found


def _read(folder: ShardFolder, seed: int, barrier: Barrier, send) -> None:
    begun = _memory()
    for sample in np.random.default_rng(seed).integers(len(folder), size=READS):
        folder.read(int(sample))
    barrier.wait()
    now = _memory()
    send.send(Memory(now.private - begun.private, now.proportional))
    barrier.wait()


def _memory() -> Memory:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return Memory((kib["Private_Clean"] + kib["Private_Dirty"]) / 1024, kib["Pss"] / 1024)

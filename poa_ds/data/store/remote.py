"""A shard folder that lies elsewhere: its shards are fetched when needed, or shortly before.

The copies are found by data set and path, so that folders of the same name never meet. Behind the
place where the run reads, copies are removed when there are more bytes than allowed.
"""

import functools
import hashlib
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from poa_ds.data.store.fetch import FetchError, Wanted, confirm, fetch
from poa_ds.data.store.index import INDEX, LISTED, SampleError, ShardFolder, load_index
from poa_ds.data.store.manifest import MANIFEST, Manifest
from poa_ds.data.store.order import BlockOrder
from poa_ds.data.store.tarwalk import ROW
from poa_ds.system.errors import UserError

ASKING = 16  # shards at a time whose presence is confirmed
MANIFEST_BYTES = 64 << 20  # of a dataset.json, at most: 400,000 shards
INDEX_BYTES = 4096  # of an index beside its rows, at most
STREAMS = 2  # shards at a time that one process fetches ahead


def is_remote(place: str) -> bool:
    """Whether a place is an address and not a path."""
    return "://" in place


class RemoteFolder(ShardFolder):
    """Like ShardFolder; `path` is where the copies are."""

    address: str
    wait_seconds = 1.0  # before the second attempt to fetch a file

    @classmethod
    def at(cls, address: str, cache: Path) -> Self:
        """The folder at an address; only dataset.json and the index are fetched now.

        dataset.json is fetched at every start: it says which data set this is.
        """
        address = address.rstrip("/")
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="opening-") as place:
                parse = functools.partial(Manifest.parse, name=MANIFEST)
                wanted = Wanted(f"{address}/{MANIFEST}", MANIFEST_BYTES, accept=parse)
                fetch(wanted, Path(place) / MANIFEST, wait_seconds=cls.wait_seconds)
                content = (Path(place) / MANIFEST).read_bytes()
                manifest = parse(content)
        except OSError as error:
            raise UserError(f"data.cache {cache} cannot be used: {error.strerror}") from error
        path = cache / hashlib.sha256(content).hexdigest()[:32]
        most = INDEX_BYTES + ROW.itemsize * sum(shard.samples for shard in manifest.shards)
        wanted = Wanted(f"{address}/{INDEX}", most, sha256=manifest.index_sha256)
        fetch(wanted, path / INDEX, wait_seconds=cls.wait_seconds)
        folder = cls(path, manifest, load_index(path, manifest))
        folder.address = address
        return folder

    def read(self, sample: int) -> bytes:
        """The encoded image; a copy that was damaged after its check is fetched once more."""
        try:
            return super().read(sample)
        except SampleError:
            number = self._shard_number(sample)
            self._close(number)
            path = self.path / self.manifest.shards[number].file
            with suppress(FileNotFoundError):
                if _sha256(path) != self.manifest.shards[number].sha256:
                    path.unlink()
            return super().read(sample)  # another process may have mended it meanwhile

    def confirm(self, part: int = 0, parts: int = 1) -> None:
        """FetchError unless the shards can be had that are not here, in their sizes.

        Asked are shard `part` and every `parts`-th after it: processes share the work.
        """

        def problem(number: int) -> str:
            try:
                confirm(self._wanted(number), wait_seconds=self.wait_seconds)
            except FetchError as error:
                return str(error)
            return ""

        shards = self.manifest.shards
        absent = [
            number
            for number in range(part, len(shards), parts)
            if not (self.path / shards[number].file).exists()
        ]
        found: list[str] = []
        with ThreadPoolExecutor(ASKING) as pool:
            for first in range(0, len(absent), ASKING):
                found += filter(None, pool.map(problem, absent[first : first + ASKING]))
                if len(found) > LISTED:
                    raise FetchError("\n".join([*found[:LISTED], "... and more"]))
        if found:
            raise FetchError("\n".join(found))

    def obtain(self, number: int, *, join: bool = True) -> bool:
        """Makes sure that a shard is here; whether it had to be fetched.

        join False: one that another process fetches now is left to it.
        """
        path = self.path / self.manifest.shards[number].file
        if path.exists():
            return False
        return fetch(self._wanted(number), path, wait_seconds=self.wait_seconds, join=join)

    def _wanted(self, number: int) -> Wanted:
        shard = self.manifest.shards[number]
        return Wanted(f"{self.address}/{shard.file}", shard.bytes, shard.bytes, shard.sha256)

    def remove(self, numbers: Sequence[int], allowed_bytes: int) -> None:
        """Removes copies of these shards, in this order, while there are more bytes than allowed.

        A process that still reads one keeps it until it closes it.
        """
        shards = self.manifest.shards
        sizes = {n: s.bytes for n, s in enumerate(shards) if (self.path / s.file).exists()}
        total = sum(sizes.values())
        for number in numbers:
            if total <= allowed_bytes:
                return
            if number in sizes:
                (self.path / shards[number].file).unlink(missing_ok=True)
                total -= sizes.pop(number)

    def _descriptor(self, number: int) -> int:
        while True:
            if number not in self._descriptors:
                self.obtain(number)
            try:
                return super()._descriptor(number)
            except FileNotFoundError:
                continue  # another run has just removed it, to keep within its own limit

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"address": self.address, "wait": self.wait_seconds}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.address, self.wait_seconds = state["address"], state["wait"]


class Prefetcher:
    """Fetches the shards of the current and the next block of a folder before they are read.

    own: from a position of the run to the folder's next one, where it is read with others.
    """

    def __init__(
        self,
        folder: RemoteFolder,
        order: BlockOrder,
        allowed_bytes: int,
        own: Callable[[int], int] = int,
    ) -> None:
        self.folder, self.order, self.allowed_bytes, self.own = folder, order, allowed_bytes, own
        self._place: tuple[int, int] | None = None
        self._plan: list[int] = []
        self._behind: list[int] = []
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []

    @staticmethod
    def needed_bytes(folder: RemoteFolder, order: BlockOrder) -> int:
        """Of three blocks at most: one that other processes still read, this and the next one."""
        sizes = sorted((shard.bytes for shard in folder.manifest.shards), reverse=True)
        return sum(sizes[: 3 * order.block])

    def at(self, position: int) -> None:
        """The run reads at this position now."""
        place = self.order.place(self.own(position))
        if place == self._place:
            return
        self._place = place
        epoch, block = place
        plan = [n for k in (0, 1) for n in self.order.block_shards(epoch, block + k)]
        before = self.order.block_shards(epoch, block - 1) if epoch or block else []
        size, whole = self.order.block, self.order.shards(epoch).tolist()
        # read already, oldest first; then those that are needed last
        behind = whole[: block * size] + whole[: (block + 1) * size - 1 : -1]
        with self._changed:
            self._plan, self._behind = plan, [n for n in behind if n not in {*plan, *before}]
            self._changed.notify_all()
        while len(self._threads) < STREAMS:
            self._threads.append(threading.Thread(target=self._run, daemon=True))
            self._threads[-1].start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._plan:
                    self._changed.wait()
                number, behind = self._plan.pop(0), self._behind
            try:
                self.folder.obtain(number, join=False)
            except UserError:
                continue  # the reader that needs it tries again, and says what is wrong
            if self.allowed_bytes:
                self.folder.remove(behind, self.allowed_bytes)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

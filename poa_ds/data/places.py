"""From what a recipe says about its data to folders and the order in which they are read."""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from poa_ds.data.image.decoders import check_decoder
from poa_ds.data.image.values import Values
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.loose import Beat, LooseFolder, is_images
from poa_ds.data.store.mixture import Mixture, MixtureOrder
from poa_ds.data.store.order import BlockOrder, Order
from poa_ds.data.store.remote import Prefetcher, RemoteFolder, is_remote
from poa_ds.data.stream import Stream
from poa_ds.recipe.tree import Data
from poa_ds.system import rendezvous
from poa_ds.system.errors import UsageError

Folder = ShardFolder | Mixture


def open_folder(
    place: str, data: Data, indexes: Path | None = None, beat: Beat = lambda: None
) -> ShardFolder:
    """The shard folder at a path or an address, or a folder or list of images at a path.

    Every missing or cut shard is an error; at an address each rank of a job asks for its part of
    them. indexes: where those of images are kept if data.cache is empty; beat: called meanwhile.
    """
    values = Values.of(data)
    folder = _found(place, data, indexes, beat, values)
    folder.values = values
    return folder


def _found(
    place: str, data: Data, indexes: Path | None, beat: Beat, values: Values | None
) -> ShardFolder:
    if not is_remote(place):
        if is_images(Path(place)):
            return LooseFolder.at(Path(place), _kept(data, indexes), beat, values)
        return ShardFolder.open(place)
    folder = RemoteFolder.at(place, Path(data.cache))
    ranks = rendezvous.complete_environment(os.environ)
    folder.confirm(int(ranks["RANK"]), int(ranks["WORLD_SIZE"]))
    return folder


def _kept(data: Data, indexes: Path | None) -> Path | None:
    """The folder for indexes of images; None where nothing can be kept."""
    if data.cache:
        return Path(data.cache)
    there = indexes and next((path for path in (indexes, *indexes.parents) if path.exists()), None)
    return indexes if there and os.access(there, os.W_OK) else None


def open_training(
    data: Data, indexes: Path | None = None, beat: Beat = lambda: None
) -> Folder | Stream:
    """What the recipe trains on: one folder, a mixture, or a stream; the rest as `open_folder`."""
    check_decoder(data.decoder)
    if data.mode == "stream":
        return Stream(data.train, data.images)
    if data.mix:
        folders = [open_folder(place, data, indexes, beat) for place in data.mix]
        folder = Mixture(folders, list(data.mix.values()))
    else:
        folder = open_folder(data.train, data, indexes, beat)
    check_cache(folder, order_of(folder, 0, data.block_shards), data.cache_bytes)
    return folder


def order_of(folder: Folder, seed: int, block_shards: int) -> Order | MixtureOrder:
    """Which sample is read when; block_shards 0: all samples of a folder are mixed."""
    if isinstance(folder, Mixture):
        orders = [order_of(part, seed, block_shards) for part in folder.folders]
        return MixtureOrder(orders, folder.starts, folder.shares, seed)
    if block_shards:
        return BlockOrder(folder.starts, seed, block_shards)
    return Order(len(folder), seed)


def order_name(folder: Folder | Stream, block_shards: int) -> str:
    """What must not change when a run continues: the samples and how they are ordered."""
    if not block_shards:
        return folder.hash
    return hashlib.sha256(json.dumps([folder.hash, block_shards]).encode()).hexdigest()


def prefetchers(
    folder: Folder, order: Order | MixtureOrder, allowed_bytes: int
) -> list[Prefetcher]:
    """One for every folder that is fetched in blocks; they share the bytes of the cache."""
    fetched = _in_blocks(folder, order)
    needed = sum(bytes_ for *_, bytes_ in fetched)
    return [
        Prefetcher(part, its, allowed_bytes * bytes_ // needed, place)
        for part, its, place, bytes_ in fetched
    ]


def check_cache(folder: Folder, order: Order | MixtureOrder, allowed_bytes: int) -> None:
    """UsageError where the bytes are too few: shards would be fetched again and again."""
    fetched = _in_blocks(folder, order)
    needed = sum(bytes_ for *_, bytes_ in fetched)
    if fetched and 0 < allowed_bytes < needed:
        raise UsageError(
            f"data.cache_gb {allowed_bytes / 1e9:g} is too small: three blocks of data.block_shards"
            f" {fetched[0][1].block} have {needed / 1e9:.3g} GB"
        )


def _in_blocks(
    folder: Folder, order: Order | MixtureOrder
) -> list[tuple[RemoteFolder, BlockOrder, Callable[[int], int], int]]:
    """(folder, its order, what is next in it, the bytes that it needs) of those at addresses."""
    if isinstance(order, MixtureOrder):
        parts = list(zip(folder.folders, order.orders, strict=True))
        own = [functools.partial(order.next_in, number) for number in range(len(parts))]
    else:
        parts, own = [(folder, order)], [int]
    return [
        (part, its, place, Prefetcher.needed_bytes(part, its))
        for (part, its), place in zip(parts, own, strict=True)
        if isinstance(part, RemoteFolder) and isinstance(its, BlockOrder)
    ]

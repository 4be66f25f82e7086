"""From what a recipe says about its data to folders and the order in which they are read."""

import hashlib
import json
from pathlib import Path

from poa_ds.data.index import ShardFolder
from poa_ds.data.mixture import Mixture, MixtureOrder
from poa_ds.data.order import BlockOrder, Order
from poa_ds.data.remote import Prefetcher, RemoteFolder, is_remote
from poa_ds.data.stream import Stream
from poa_ds.recipe import Data

Folder = ShardFolder | Mixture


def open_folder(place: str, data: Data) -> ShardFolder:
    """The shard folder at a path or an address."""
    return RemoteFolder.at(place, Path(data.cache)) if is_remote(place) else ShardFolder.open(place)


def open_training(data: Data) -> Folder | Stream:
    """What the recipe trains on: one folder, a mixture, or a stream."""
    if data.mode == "stream":
        return Stream(data.train, data.images)
    if not data.mix:
        return open_folder(data.train, data)
    folders = [open_folder(place, data) for place in data.mix]
    return Mixture(folders, list(data.mix.values()))


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
    """One for a folder that is fetched in blocks; a mixture's shards are fetched when read."""
    if isinstance(folder, RemoteFolder) and isinstance(order, BlockOrder):
        return [Prefetcher(folder, order, allowed_bytes)]
    return []

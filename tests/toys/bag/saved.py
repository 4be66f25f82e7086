"""What a bag keeps in memory between forward and backward."""

from poa_ds.model.options import Backbone
from poa_ds.model.saved import FLOAT, Saved, SavedBlock, Streams


def computed(options: Backbone, sequences: int) -> float:
    return sequences


def saved(streams: Streams) -> Saved:
    patches = streams.pixels / streams.shape.channels / streams.options.patch_size**2
    blocks = []
    for block in range(streams.options.depth.max):
        users = [s for s in streams.subnets if block < s.depth]  # a toy: as if the first ones
        row = sum(3 * s.width * streams.bytes_per_number + 2 * FLOAT for s in users)
        entry = sum(s.width * streams.bytes_per_number for s in streams.subnets)
        blocks.append(SavedBlock(entry * patches, {"norm, linear, GELU": row * patches}))
    return Saved({"crops": streams.pixels * streams.bytes_per_number}, blocks)

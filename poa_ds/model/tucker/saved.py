"""What a templated ViT keeps in memory: a ViT's activations, and the matrices that it made."""

from poa_ds.model.saved import Named, Saved, Streams, added
from poa_ds.model.tucker.shape import full_ranks, ranks_of
from poa_ds.model.vit import saved as vit
from poa_ds.model.vit.saved import computed

__all__ = ["computed", "saved"]


def saved(streams: Streams) -> Saved:
    """Bytes that all streams keep."""
    found = vit.saved(streams)
    return Saved(added(found.outside, _making(streams)), found.blocks)


def _making(streams: Streams) -> Named:
    options, b = streams.options, streams.bytes_per_number
    widest = streams.subnets[0].width
    count, dim, _ = full_ranks(widest, options.depth.max, options.mlp_ratio)
    first, rows, columns = ranks_of(options)
    return {
        "made matrices": count * dim * dim * b,
        "steps of their making": count * (first + rows * columns + dim * columns) * b,
    }

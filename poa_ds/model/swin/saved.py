"""What a Swin keeps in memory between forward and backward."""

from poa_ds.model.options import Backbone
from poa_ds.model.saved import FLOAT, Named, Saved, SavedBlock, Streams, added
from poa_ds.model.shape import map_sides


def computed(options: Backbone, sequences: int) -> float:
    """All of them: stochastic depth multiplies results by 0."""
    return sequences


def saved(streams: Streams) -> Saved:
    """Bytes that all streams keep."""
    options, b = streams.options, streams.bytes_per_number
    shape = streams.shape
    sides = [(n, map_sides(side, options.patch_size)) for n, side in streams.crops]
    rows = [sum(n * side[stage] ** 2 for n, side in sides) for stage in range(4)]
    members = [set(shape.members(subnet)) for subnet in streams.subnets]
    blocks = []
    for stage, depth in enumerate(shape.stages):
        windows = [(n, -(-side[stage] // options.window)) for n, side in sides]
        for place in range(depth):
            merges, index, entry, inside = stage > 0 and place == 0, len(blocks), 0.0, []
            for number, subnet in enumerate(streams.subnets):
                c, shared = subnet.width * 2**stage, bool(number) and index == 0
                before = rows[stage - 1] * c // 2 if merges else rows[stage] * c
                entry += 0 if shared else before * b
                if merges:
                    inside.append({"merging": rows[stage] * (4 * c * b + 2 * FLOAT)})
                if index in members[number]:
                    inside.append(_in_block(streams, c, rows[stage], windows))
                    if shared:  # a prefix of the intact stream
                        inside.append({"inputs of the norms": -rows[stage] * c * b})
            blocks.append(SavedBlock(entry, added(*inside)))
    # where only a part of the channels goes on, all are kept behind the norm too
    normed = shape.normed * (1 + (shape.normed > shape.widest))
    norms = sum(rows[3] * (8 * subnet.width + 2) * FLOAT for subnet in streams.subnets)
    outside: Named = {
        "crops": streams.pixels * b,
        "norm of the patches": rows[0] * (normed * b + 2 * FLOAT),
        "final norm": norms,
    }
    return Saved(outside, blocks)


def _in_block(streams: Streams, c: int, rows: int, windows: list[tuple[int, int]]) -> Named:
    """One block for one stream; windows: (maps, windows along a side) of each resolution.

    Attention as PyTorch computes it on a CPU with a trained bias: the probabilities are kept.
    """
    options, b = streams.options, streams.bytes_per_number
    places = [n * (side * options.window) ** 2 for n, side in windows]
    # scaled q and k, v; with several windows v lies in a copy of all three
    copies = sum(
        count * (5 if side > 1 else 3) for count, (_, side) in zip(places, windows, strict=True)
    )
    pairs = sum(places) * options.window**2
    hidden = options.mlp_ratio * c
    dropped = 2 * FLOAT if options.drop_path > 0 else 0
    return {
        "inputs of the norms": rows * (2 * c * b + 4 * FLOAT),
        "inputs of qkv and fc1": rows * 2 * c * b,
        "attention: q, k, v": copies * c * b,
        "attention: probabilities": pairs * (c // options.head_dim) * b,
        "attention: windows put back": rows * c * b,
        "MLP: before and after GELU": rows * 2 * hidden * b,
        "factors of stochastic depth": rows * dropped,
    }

"""What a ResNet keeps in memory between forward and backward."""

from poa_ds.model.options import Backbone
from poa_ds.model.saved import ROW_NUMBER, Named, Saved, SavedBlock, Streams, added
from poa_ds.model.shape import map_sides


def computed(options: Backbone, sequences: int) -> float:
    """All of them: there is no stochastic depth."""
    return sequences


def saved(streams: Streams) -> Saved:
    """Bytes that all streams keep."""
    options, b = streams.options, streams.bytes_per_number
    shape = streams.shape
    sides = [(n, map_sides(side, options.patch_size)) for n, side in streams.crops]
    areas = [sum(n * side[stage] ** 2 for n, side in sides) for stage in range(4)]
    members = [set(shape.members(subnet)) for subnet in streams.subnets]
    halves = sum(n * (-(-side // 2)) ** 2 for n, side in streams.crops)
    outside: Named = {
        "crops": streams.pixels * b,
        "stem: convolution and ReLU": halves * 2 * shape.stem * b,
        "stem: pooling": areas[0] * shape.stem * (ROW_NUMBER + b),
    }
    blocks, inputs = [], shape.stem
    for stage, depth in enumerate(shape.stages):
        outer = shape.outputs * 2**stage
        for place in range(depth):
            index, before = len(blocks), areas[max(stage - (place == 0), 0)]
            maps, entry, inside = (before, areas[stage], outer), 0.0, []
            for number, subnet in enumerate(streams.subnets):
                entry += 0 if number and not index else before * inputs * b
                if index in members[number]:
                    inner, narrow = subnet.width * 2**stage, subnet.width < shape.widest
                    inside.append(_in_block(streams, inner, maps, narrow, shortcut=place == 0))
                    if index and index - 1 not in members[number]:  # a copy that passed it by
                        inside.append({"inputs of the blocks": before * inputs * b})
            blocks.append(SavedBlock(entry, added(*inside)))
            inputs = outer
    return Saved(outside, blocks)


def _in_block(
    streams: Streams, inner: int, maps: tuple[int, int, int], narrow: bool, *, shortcut: bool
) -> Named:
    """One bottleneck for one stream. maps: places before and after, channels that leave.

    narrow: its weights are slices.
    """
    (before, after, outer), b = maps, streams.bytes_per_number
    weights = (9 * inner**2 + inner * outer) * b * len(streams.crops) if narrow else 0
    return {
        "inputs of the norms": ((before + after) * inner + (1 + shortcut) * after * outer) * b,
        "results of ReLU": ((before + after) * inner + after * outer) * b,
        "scaled weights": weights,
    }

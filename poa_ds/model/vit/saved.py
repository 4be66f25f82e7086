"""What a ViT keeps in memory between forward and backward, and the work that it leaves out."""

from poa_ds.model.options import Backbone
from poa_ds.model.saved import FLOAT, ROW_NUMBER, Named, Saved, SavedBlock, Streams, added
from poa_ds.model.space import spread


def computed(options: Backbone, sequences: int) -> float:
    """How many of the sequences a residual branch runs on (packing.draw_drops)."""
    left = sequences * (1 - options.drop_path)
    return max(int(left), 1) if options.drop_path > 0.1 else left


def residual(streams: Streams) -> int:
    """Bytes of a number of what the branches are added to."""
    return FLOAT if streams.options.residual == "fp32" else streams.bytes_per_number


def saved(streams: Streams) -> Saved:
    """Bytes that all streams keep."""
    options, b, r = streams.options, streams.bytes_per_number, residual(streams)
    lengths = [
        (n, 1 + options.registers + (side // options.patch_size) ** 2) for n, side in streams.crops
    ]
    rows = sum(n * tokens for n, tokens in lengths)
    some = sum(computed(options, n) * tokens for n, tokens in lengths)
    drops = options.drop_path > 0
    members = [set(spread(subnet.depth, options.depth.max)) for subnet in streams.subnets]
    blocks = []
    for index in range(options.depth.max):
        entry, inside = 0.0, []
        for number, subnet in enumerate(streams.subnets):
            c, shared = subnet.width, bool(number) and index == 0
            entry += 0 if shared else rows * c * r
            if index in members[number]:
                inside.append(_in_block(streams, c, some))
                if shared and not drops and r == b:  # a prefix of the intact stream
                    inside.append({"inputs of the norms": -rows * c * b})
        blocks.append(SavedBlock(entry, added(*inside)))
    branches = 2 * sum(map(len, members)) if drops else 0
    kept = branches * (some * (ROW_NUMBER + FLOAT) + rows * FLOAT)
    norms = sum(rows * (subnet.width + 2) * FLOAT for subnet in streams.subnets)
    outside: Named = {"crops": streams.pixels * b, "rows that stochastic depth keeps": kept}
    if options.positions == "rope":
        places = sum((side // options.patch_size) ** 2 for _, side in streams.crops)
        outside["cosines and sines of places"] = places * options.head_dim * FLOAT
    return Saved(outside | {"final norm": norms}, blocks)


def _in_block(streams: Streams, c: int, rows: float) -> Named:
    """One block for one stream of width c on `rows` rows."""
    options, b = streams.options, streams.bytes_per_number
    first, second = streams.shape.hidden(c)
    return {
        "inputs of the norms": rows * (2 * c * b + 4 * FLOAT),
        "inputs of qkv and fc1": rows * 2 * c * b,
        "attention: q, k, v, result twice": rows * (5 * c * b + c // options.head_dim * FLOAT),
        "MLP: before and after GELU": rows * (first + second * (2 if options.swiglu else 1)) * b,
        "results of both branches": rows * 2 * c * b,
    }

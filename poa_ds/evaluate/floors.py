"""Floors: what the same protocol finds without any training, in raw pixels and in random weights.

Their rows have names of their own (linear_top1_raw_pixels): no size is judged by them.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from poa_ds.evaluate.feature_cache import Reader, is_features
from poa_ds.evaluate.features import PIXEL_SIDE, PIXELS, random_weights, raw_pixels
from poa_ds.evaluate.score_rows import OF_PIXELS, OF_RANDOM, ScoreRow
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.system.errors import UsageError

SIZE = "raw pixels"  # in the place of a size, which they have not


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether they are measured."""
    parser.add_argument(
        "--floors",
        action="store_true",
        help="the same of raw pixels and of random weights, under names of their own",
    )


def readers(reader: Reader, args: argparse.Namespace, places: Sequence[str]) -> list[Reader]:
    """The run's, and with --floors those that were not trained.

    UsageError: these are asked about features that lie there.
    """
    if not args.floors:
        return [reader]
    if features := [place for place in places if is_features(place)]:
        raise UsageError(f"--floors reads images, and {features[0]} holds features: give shards")
    return [reader, _of_pixels(reader), untrained(reader)]


def feature(reader: Reader, otherwise: str) -> str:
    """What is read out of it (`features.READS`)."""
    return PIXELS if reader.floor == OF_PIXELS else otherwise


def named(rows: Sequence[ScoreRow], reader: Reader) -> list[ScoreRow]:
    """The rows that came of a reader as they are kept: raw pixels have no size."""
    return [replace(row, size=SIZE) for row in rows] if reader.floor == OF_PIXELS else [*rows]


def untrained(reader: Reader) -> Reader:
    """The same sizes of the network before any training."""
    about = f"random weights, seed {reader.recipe.seed}"
    model = random_weights(reader.recipe).eval()
    return replace(reader, model=model, weights=about, floor=OF_RANDOM)


def _of_pixels(reader: Reader) -> Reader:
    crop, channels = reader.recipe.evaluation.crop, reader.recipe.data.channels
    model = Pixels(min(crop, PIXEL_SIDE), channels)
    about = f"raw pixels, {model.side} of a side"
    subnets = model.space.subnets()
    return replace(reader, model=model, weights=about, floor=OF_PIXELS, subnets=subnets)


class Pixels(ElasticBackbone):
    """Images in the place of what a network says of them: of one size, without a block.

    side: to which images are shrunk.
    """

    kind = SIZE

    def __init__(self, side: int, channels: int) -> None:
        nn.Module.__init__(self)
        self.side, self.space = side, ElasticSpace((channels * side**2,), (0,))

    def forward(self, images: Tensor, subnet: Subnet, masks: Tensor | None = None) -> Tensor:
        """(B, 1, C x side^2)."""
        return raw_pixels(images, self.side)[:, None]

    def feature_width(self, subnet: Subnet) -> int:
        return subnet.width

    def flops(self, subnet: Subnet, image_size: int) -> float:
        return 0.0

"""k-NN accuracy of many sizes at once: every image is decoded once, all sizes run on it.

The protocol of the field (docs/method.md 9): short side to 256 (bicubic), centre 224, unit class
token, cosine, weights softmax(similarity / 0.07) over the largest k. All ranks take part.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from poa_ds.evaluate.features import Readout, raw_pixels
from poa_ds.evaluate.knn_protocol import Asked, KnnProtocol, Progress
from poa_ds.evaluate.neighbours import Answers
from poa_ds.evaluate.right import RightRow
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet

FEATURE_BYTES = 8 << 30  # of features that a rank keeps at a time; more sizes take more passes


def answers(
    model: ElasticBackbone,
    subnets: Sequence[Subnet],
    protocol: KnnProtocol,
    readout: Readout,
    *,
    progress: Progress | None = None,
) -> dict[Subnet, Answers]:
    """Which queries each size gets right, the same on every rank. A collective.

    A k beyond the bank takes the whole bank. Memory: FEATURE_BYTES of features on the CPU; beyond
    that, images are read once per group of sizes.
    """
    asked = [Asked(protocol.queries)]
    found = answers_of_sets(model, subnets, protocol, asked, readout, progress=progress)
    return {subnet: of_queries for subnet, [of_queries] in found.items()}


def answers_of_sets(
    model: ElasticBackbone,
    subnets: Sequence[Subnet],
    protocol: KnnProtocol,
    sets: Sequence[Asked],
    readout: Readout,
    *,
    progress: Progress | None = None,
) -> dict[Subnet, list[Answers]]:
    """The same of any sets of queries, in their order. A collective."""
    rows = max(protocol.rows_per_rank(asked.split) for asked in sets)
    found: dict[Subnet, list[Answers]] = {}
    was_training = model.training
    model.eval()
    for group in _groups(subnets, lambda subnet: 4 * rows * model.feature_width(subnet)):
        encode, place = readout.encoder(model, group), (readout.device, readout.workers)
        measured = protocol.measure_sets(sets, encode, len(group), *place, progress)
        of_sizes = zip(*measured, strict=True)
        found.update((subnet, [*each]) for subnet, each in zip(group, of_sizes, strict=True))
    model.train(was_training)
    return found


def knn(
    model: ElasticBackbone,
    subnets: Sequence[Subnet],
    protocol: KnnProtocol,
    readout: Readout,
    *,
    progress: Progress | None = None,
) -> dict[Subnet, dict[int, float]]:
    """Percent top-1 of each size for each k; NaN where features are not finite. A collective."""
    found = answers(model, subnets, protocol, readout, progress=progress)
    return {subnet: answered.percent() for subnet, answered in found.items()}


def right_row(
    step: int, protocol: Mapping[str, Any], k: int, answered: Mapping[Subnet, Answers]
) -> RightRow:
    """What is kept of the answers: those for k of the sizes that have finite features."""
    right = {str(s): a.right[k].numpy() for s, a in answered.items() if a.finite}
    return RightRow.of(step, protocol, k, right)


def _groups(subnets: Sequence[Subnet], cost: Callable[[Subnet], int]) -> list[list[Subnet]]:
    """The sizes in order, cut where the features of a group would pass FEATURE_BYTES."""
    groups: list[list[Subnet]] = [[]]
    for subnet in subnets:
        if groups[-1] and sum(map(cost, [*groups[-1], subnet])) > FEATURE_BYTES:
            groups.append([])
        groups[-1].append(subnet)
    return groups


def raw_pixel_floor(
    protocol: KnnProtocol, readout: Readout, *, progress: Progress | None = None
) -> dict[int, float]:
    """Percent top-1 for each k with the pixels themselves as features. A collective."""
    [found] = raw_pixel_answers(protocol, [Asked(protocol.queries)], readout, progress=progress)
    return found.percent()


def raw_pixel_answers(
    protocol: KnnProtocol,
    sets: Sequence[Asked],
    readout: Readout,
    *,
    progress: Progress | None = None,
) -> list[Answers]:
    """What pixels answer to sets of queries; large crops are shrunk first. A collective."""

    def encode(images: Tensor) -> list[Tensor]:
        return [raw_pixels(images.float())]

    found = protocol.measure_sets(sets, encode, 1, readout.device, readout.workers, progress)
    return [answered for [answered] in found]

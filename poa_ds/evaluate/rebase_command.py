"""poa-ds eval rebase: what a ViT's slices are worth before any training, in which basis.

The network is taken as it is, sorted and rotated, with each input scale, all in memory: the table
says which `poa-ds import --rebase` and `--input-scale` to take.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from poa_ds.data.loader import eval_batches
from poa_ds.data.places import open_folder
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate.cka import Alike
from poa_ds.evaluate.command import add_bank_arguments, opened
from poa_ds.evaluate.features import Readout
from poa_ds.evaluate.knn import knn
from poa_ds.evaluate.knn_protocol import KnnProtocol
from poa_ds.evaluate.neighbours import subset
from poa_ds.evaluate.ranks import all_ranks
from poa_ds.evaluate.results import describe, error
from poa_ds.export.import_weights import calibration_images
from poa_ds.export.rebase import Rebase, checked, described, rebased, statistics
from poa_ds.model.layers import scale_inputs
from poa_ds.model.space import Subnet
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist, paths
from poa_ds.system.console import tell
from poa_ds.system.progress import progress

WAYS: tuple[Rebase, ...] = ("none", "sort", "rotate")
SCALES = (0.5, 1.0)
ALIKE_IMAGES = 2048  # queries that CKA looks at, at most


@dataclass(frozen=True)
class Cell:
    """One size of one variant. percent: k-NN top-1; cka: with the intact network as it is."""

    size: str
    way: str
    input_scale: float
    percent: float
    cka: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval rebase`."""
    add_bank_arguments(parser)
    parser.add_argument(
        "--calibrate",
        type=paths.path,
        metavar="SHARDS",
        help="images that the bases are found on (those of the bank)",
    )
    parser.add_argument(
        "--input-scales", type=_scales, default=SCALES, help="exponents, by commas (0.5,1)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _scales(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 0.5,1") from None
    if not all(0 <= scale <= 1 for scale in found):
        raise argparse.ArgumentTypeError(f"{text!r}: exponents lie between 0 and 1")
    return found


def run(args: argparse.Namespace) -> int:
    """Measure and print. Runs under torchrun as well; nothing is kept."""
    with all_ranks() as device:
        own = opened(args, device)
        model, protocol, readout = checked(own.model, str(args.run)), own.protocol, own.readout
        shards = protocol.bank.folder
        if args.calibrate:
            shards = open_folder(str(args.calibrate), own.recipe.data, own.folder.images)
        made = variants(model, own.recipe, shards, args.input_scales)
        cells = measured(model.to(device), made, own.subnets, protocol, readout)
        if dist.is_main() and args.json:
            tell(json.dumps([vars(cell) for cell in cells], indent=1))
        elif dist.is_main():
            how = protocol.record(readout.precision)
            k = protocol.options.report_k
            title = f"{args.run}, step {own.step}: k-NN top-1 in % (k={k}), then CKA"
            tell(f"{title} with the intact network as it is\n{describe(how)}")
            tell(table(cells, len(protocol.queries.rows)))
    return 0


def variants(
    model: ElasticViT, recipe: Recipe, shards: ShardFolder, scales: Sequence[float]
) -> dict[tuple[Rebase, float], ElasticViT]:
    """The network in every basis with every input scale, each computing the same when intact."""
    found = statistics(model, calibration_images(recipe, shards))
    made = {}
    for way in WAYS:
        state = rebased(model, found, way).state
        for scale in scales:
            with torch.device("meta"):
                network = backbone(described(recipe, way))
            network.load_state_dict(state, assign=True)
            network.requires_grad_(False).eval()
            scale_inputs(network, scale)
            made[way, scale] = network
    return made


def measured(
    model: ElasticViT,
    made: Mapping[tuple[Rebase, float], ElasticViT],
    subnets: Sequence[Subnet],
    protocol: KnnProtocol,
    readout: Readout,
) -> list[Cell]:
    """Every size of every variant, held against the intact `model`. A collective."""
    k, intact = protocol.options.report_k, model.space.intact
    original = readout.encoder(model, [intact])
    found = []
    for (way, scale), network in made.items():
        network.to(readout.device)
        bar = progress if dist.is_main() else None
        accuracies = knn(network, subnets, protocol, readout, progress=bar)
        sums, encode = [Alike() for _ in subnets], readout.encoder(network, subnets)
        for images in _queries(protocol, readout):
            with torch.inference_mode():
                [theirs] = original(images)
                for of_size, ours in zip(sums, encode(images), strict=True):
                    of_size.add(ours, theirs)
        network.cpu()
        for subnet, of_size in zip(subnets, sums, strict=True):
            found.append(Cell(str(subnet), way, scale, accuracies[subnet][k], of_size.cka()))
    return found


def _queries(protocol: KnnProtocol, readout: Readout) -> Iterator[torch.Tensor]:
    """ALIKE_IMAGES of them, evenly spread, in batches of uint8; the same on every rank."""
    rows, options = protocol.queries.rows, protocol.options
    batches = eval_batches(
        protocol.queries.folder,
        rows[subset(len(rows), ALIKE_IMAGES)],
        resize=options.resize,
        crop=options.crop,
        batch_size=options.batch_size,
        workers=readout.workers,
        bad=[],
    )
    for images, _ in batches:
        yield images.to(readout.device)


def table(cells: Sequence[Cell], queries: int) -> str:
    """A line per size, a column per variant."""
    columns = list(dict.fromkeys((cell.way, cell.input_scale) for cell in cells))
    by_place = {(cell.size, cell.way, cell.input_scale): cell for cell in cells}
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    width = max(10, *map(len, sizes)) + 2
    head = "".join(f"{f'{way} {scale:g}':>16}" for way, scale in columns)
    lines = [f"{'size':<{width}}{head}"]
    for size in sizes:
        row = [by_place[size, way, scale] for way, scale in columns]
        lines.append(
            f"{size:<{width}}" + "".join(f"{f'{c.percent:.1f}  {c.cka:.3f}':>16}" for c in row)
        )
    worst = max(error(cell.percent, queries) for cell in cells)
    lines.append(
        f"columns: --rebase and --input-scale; 95 % error of an accuracy at most {worst:.1f} points"
    )
    return "\n".join(lines)

"""poa-ds look: one page of pictures that shows what sizes of a run see in images."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.data.image import decoders
from poa_ds.data.image.values import Values
from poa_ds.data.image.views import center_view
from poa_ds.evaluate.bank import Bank, bank, marks, reference
from poa_ds.evaluate.embed import sources as image_sources
from poa_ds.evaluate.embed.sources import Images
from poa_ds.evaluate.look.page import View, page
from poa_ds.evaluate.look.seeing import Seen, brightness, colours, nearest, places, see, see_map
from poa_ds.evaluate.look.shown import chosen, numbers, pictures
from poa_ds.evaluate.neighbours import subset
from poa_ds.export.extract import extract
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments, paths
from poa_ds.system.console import say, tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import check_out, write_out
from poa_ds.system.progress import progress

MORE_PATCHES = 16  # on a side than in training, so that the maps show something
Eyes = Callable[[Tensor], Seen]
NEAREST, TOGETHER = 5, 16  # neighbours of an image; images in one batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds look`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument("--images", type=paths.path, required=True, metavar="DIR", help="a tree")
    parser.add_argument(
        "--heads", action="store_true", help="below an attention that of each head by itself"
    )
    parser.add_argument(
        "--reference",
        type=paths.place,
        metavar="PLACE",
        help="a tree or shards: neighbours are found among its images (among those of --images)",
    )
    parser.add_argument(
        "--most-reference",
        type=arguments.count,
        default=2000,
        metavar="N",
        help="of its images, evenly spread (2000)",
    )
    parser.add_argument(
        "--sizes",
        type=arguments.named,
        help="all, or names and WIDTHxDEPTH, by commas (recipe's names)",
    )
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--pixels",
        type=arguments.count,
        help=f"side of the images, whole patches (training's and {MORE_PATCHES} patches)",
    )
    parser.add_argument(
        "--show",
        type=numbers,
        metavar="R,G,B|mean",
        help="channels from 1 on that pictures are made of, of measurements (the first three; of "
        "fewer their mean)",
    )
    parser.add_argument(
        "--shown", type=arguments.count, default=8, help="images in the tables, the first (8)"
    )
    parser.add_argument(
        "--most", type=arguments.count, default=200, help="images in all, evenly spread (200)"
    )
    parser.add_argument(
        "--out", type=paths.path, default=Path("look.html"), help="the page (look.html)"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what it costs, write nothing")


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    if not args.dry_run:
        check_out("--out", args.out)
    model, recipe, step = load_teacher(args.run, args.step)
    reader = _Reader(Values.of(recipe.data), chosen(recipe.data.channels, args.show))
    subnets = model.space.select(args.sizes or [*model.space.names] or recipe.evaluation.sizes)
    networks = [_eyes(model, subnet) for subnet in subnets]
    shape, trained = derived.shape(recipe), recipe.crops.global_size
    side = args.pixels or trained + MORE_PATCHES * (trained // shape.grid(trained))
    unit, called = shape.multiple()
    if side % unit:
        raise UsageError(f"--pixels {side} is not a multiple of {called}")
    grid = shape.grid(side)
    source = image_sources.below(args.images)
    rows = subset(len(source), args.most).tolist()
    flops = len(rows) * sum(model.flops(subnet, side) for subnet in subnets)
    others = reference(args.reference, recipe.data) if args.reference else None
    more = min(len(others), args.most_reference) if others is not None else 0
    flops *= (len(rows) + more) / len(rows)
    counted = f"{len(rows)} of {len(source)} images at {side} px x {len(subnets)} sizes"
    counted += f", and {more:,} to find neighbours in" if more else ""
    tell(f"{counted} = {flops:.2g} FLOPs")
    if args.dry_run:
        return 0
    keys, images = reader.images(source, rows, side)
    if len(keys) < 2:
        raise UserError(f"{len(keys)} images can be read: two are needed at least")
    seen = [_seen(network, images, recipe) for network in networks]
    # a map is smaller than the masks that its patches are repeated for
    patches = f", {grid} x {grid} patches" if seen[0].heads is not None else ""
    about = (
        f"step {step:,}; {len(keys)} images at {side} px{patches}, trained at {trained} px. "
        "What to look for, not a measurement."
    )
    names = [f"{_name(model, subnet)} {subnet}".strip() for subnet in subnets]
    shown = min(args.shown, len(keys))
    seen_as = reader.pictures(images)
    pixels = seen_as.permute(0, 2, 3, 1).numpy()
    found = bank(keys, images, seen_as, [one.tokens for one in seen])
    if others is not None:
        found = _reference(others, reader, args.most_reference, networks, recipe, side)
    same = found.same(marks(images))
    views = _views(names, seen, found, same, grid, heads=args.heads)
    title = f"What sizes of {args.run.name} see"
    apart = found if others is not None else None
    text = page(title, about, keys, pixels, views, shown, apart)
    write_out("--out", args.out, text)
    tell(f"{args.out}: {len(keys)} images, {len(names)} sizes, {len(text) / 1e6:.2f} MB")
    return 0


def _eyes(model: ElasticBackbone, subnet: Subnet) -> Eyes:
    """What a size sees of normalised images, by its plain network where that has attention."""
    network = extract(model, subnet).network()
    if hasattr(network, "cls_token"):
        return partial(see, network)
    return partial(see_map, model, subnet)


def _name(model: ElasticBackbone, subnet: Subnet) -> str:
    return ", ".join(name for name, other in model.space.names.items() if other == subnet)


@dataclass(frozen=True)
class _Reader:
    """How images are read and shown. values: as of the recipe; shown: channels, as `chosen`."""

    values: Values | None
    shown: Sequence[int]

    def images(self, source: Images, rows: Sequence[int], side: int) -> tuple[list[str], Tensor]:
        """(names, (B, C, side, side) of 0 to 255) of those that can be read; others are said."""
        keys, found, decode = [], [torch.empty(0)], decoders.of(self.values)
        for row in rows:
            try:
                found.append(center_view(decode(source.read(row)), side, side)[None])
                keys.append(source.key(row))
            except (UserError, OSError) as error:
                say(f"warning: {source.key(row)} is left out: {error}")
        return keys, torch.cat(found[1:] or found)

    def pictures(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8."""
        return pictures(images, self.shown)


def _seen(eyes: Eyes, images: Tensor, recipe: Recipe) -> Seen:
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (recipe.augmentation.mean, recipe.augmentation.std)
    )
    return Seen.joined([eyes((x / 255 - mean) / std) for x in images.split(TOGETHER)])


def _reference(
    source: Images,
    reader: _Reader,
    most: int,
    networks: Sequence[Eyes],
    recipe: Recipe,
    side: int,
) -> Bank:
    """The bank of other images, evenly spread where there are more: a batch at a time."""
    rows, parts = subset(len(source), most).tolist(), []
    starts = range(0, len(rows), TOGETHER)
    for i in progress(starts, total=len(starts), label="reference", unit="batches"):
        keys, images = reader.images(source, rows[i : i + TOGETHER], side)
        if keys:
            tokens = [_seen(network, images, recipe).tokens for network in networks]
            parts.append(bank(keys, images, reader.pictures(images), tokens))
    if not parts:
        raise UserError("--reference: none of its images can be read")
    return Bank.joined(parts)


def _views(
    names: Sequence[str],
    seen: Sequence[Seen],
    others: Bank,
    same: Tensor,
    grid: int,
    *,
    heads: bool,
) -> list[View]:
    """same (B, M): which image of the bank is the picture itself. heads: each by itself too."""
    painted, spots = colours([one.patches for one in seen]), places([one.tokens for one in seen])
    views = []
    for i, (name, one, colour, spot) in enumerate(zip(names, seen, painted, spots, strict=True)):
        found = nearest(one.tokens, others.tokens[i], same, NEAREST)
        near = [
            [(c, n) for c, n in zip(*pair, strict=True) if c > -torch.inf]
            for pair in zip(*(x.tolist() for x in found), strict=True)
        ]
        each = attention = None
        if one.heads is not None:
            attention = brightness(one.attention).unflatten(1, (grid, grid)).numpy()
        if heads and one.heads is not None:
            each = brightness(one.heads.flatten(0, 1))
            each = each.reshape(*one.heads.shape[:2], grid, grid).numpy()
        views.append(
            View(
                name,
                colour.unflatten(1, (grid, grid)).numpy(),
                attention,
                each,
                near,
                spot.numpy(),
            )
        )
    return views

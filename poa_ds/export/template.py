"""poa-ds template: a run's network, made from a template after the fact."""

import argparse
from dataclasses import replace

from poa_ds.checkpoint.deployed import find_teacher, licence_of, load_teacher, write_teacher
from poa_ds.model import form
from poa_ds.model.options import Template
from poa_ds.model.shape import vit_parts
from poa_ds.recipe import derived, load
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.arguments import whole
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.typed_yaml import plain

KIND = "tucker"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds template`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher: a ViT"
    )
    parser.add_argument(
        "--ranks",
        type=_ranks,
        default=(0, 0, 0),
        metavar="A,B,C",
        help="along matrices, rows and columns; 0, as without: half of the full one",
    )
    parser.add_argument("--out", type=paths.path, required=True, help="folder to write, new")
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")


def _ranks(text: str) -> tuple[int, ...]:
    ranks = tuple(whole(part) for part in text.split(","))
    if len(ranks) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} are not three numbers, as in 24,48,48")
    return ranks


def run(args: argparse.Namespace) -> int:
    """Write the templated network as a teacher that the other commands read."""
    model, recipe, step = load_teacher(args.run, args.step)
    found = form.of(model.kind)
    if found.module is not form.of(KIND).module:
        raise UserError(f"{args.run} is a {found.title}: a template is of the matrices of a ViT")
    if parts := vit_parts(recipe.backbone):
        raise UserError(f"{args.run} has backbone.{', backbone.'.join(parts)}, a template has none")
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UsageError(f"--out {args.out} exists and is not an empty folder: name a new one")
    recipe = _templated(recipe, args.ranks)
    made = backbone(recipe)
    error = made.take(model.plain_state())
    tensors = {f"backbone.{name}": tensor for name, tensor in made.state_dict().items()}
    source = find_teacher(args.run, args.step)
    licence = licence_of(source)
    write_teacher(args.out, tensors, recipe, step, source=str(source), licence=licence)
    before, after = (sum(p.numel() for p in network.parameters()) for network in (model, made))
    ranks = ", ".join(map(str, derived.shape(recipe).ranks))
    tell(
        f"ranks {ranks}: {before / 1e6:.3g} million numbers become {after / 1e6:.3g} million;"
        f" relative error of the matrices {error:.3g}, {100 * (1 - error**2):.3g} % of their"
        f" squares are kept: {args.out}\n"
        f"  poa-ds eval knn {args.out} --bank SHARDS --queries SHARDS\n"
        f"  poa-ds init {args.out} --size {derived.space(recipe).smallest} --out MODEL"
    )
    return 0


def _templated(recipe: Recipe, ranks: tuple[int, int, int]) -> Recipe:
    """The recipe of that network; UsageError: the ranks are more than there are."""
    options = replace(recipe.backbone, name=KIND, template=Template(ranks))
    return load.kept(plain(replace(recipe, backbone=options)))

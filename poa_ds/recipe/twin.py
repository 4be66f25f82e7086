"""poa-ds twin: the recipe of one size of a run alone, the measure of what the run made of it."""

import argparse
from dataclasses import replace

from poa_ds.model import shape as shapes
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Recipe
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.files import check_out, write_out
from poa_ds.system.printable import printable
from poa_ds.system.run_folder import RunFolder
from poa_ds.system.typed_yaml import plain


def twin(recipe: Recipe, subnet: Subnet) -> Recipe:
    """The checked recipe of method `single` for that size; output_dir is left open.

    UsageError: the recipe's numbers do not fit a network of that size alone.
    """
    options = recipe.backbone
    space = derived.space(recipe)
    names = {name: text for name, text in options.names.items() if space.parse(name) == subnet}
    found = replace(
        recipe,
        output_dir="",
        start="",
        heads=replace(recipe.heads, elastic="shared"),
        objective=replace(recipe.objective, method="single", slow_start=0.0, koleo_students="all"),
        backbone=replace(shapes.one_size(options, subnet), names=names),
        evaluation=replace(recipe.evaluation, sizes=("all",)),
        mlflow=replace(recipe.mlflow, run_name=f"{recipe.mlflow.run_name or 'twin'}_{subnet}"),
    )
    try:
        return load.from_dict(plain(found))
    except UsageError as error:
        raise UsageError(f"{subnet} alone cannot be trained like that: {error}") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds twin`."""
    parser.add_argument("run", type=paths.path, metavar="RUN", help="output directory")
    parser.add_argument("--size", required=True, help="name or WIDTHxDEPTH")
    parser.add_argument("--out", type=paths.path, metavar="FILE", help="(without: printed)")


def run(args: argparse.Namespace) -> int:
    """Write the recipe, or print it."""
    if args.out is not None:
        check_out("--out", args.out)
    path = RunFolder(args.run).recipe
    if not path.is_file():
        raise UserError(f"{args.run} holds no {path.name}: it is not the output directory of a run")
    recipe = load.kept_recipe(path)
    if recipe.distill.teacher:
        raise UsageError(
            f"{args.run} learned from {recipe.distill.teacher}: its recipe has not what a network"
            " needs that learns alone; take the twin of a run of another method"
        )
    subnet = derived.space(recipe).parse(args.size)
    text = f"# {subnet} of {printable(args.run)} alone, by poa-ds twin: all else is as there.\n"
    text += load.to_yaml(twin(recipe, subnet))
    if args.out is None:
        print(text, end="")
        return 0
    write_out("--out", args.out, text)
    tell(f"{args.out}: python -m poa_ds.train --config {args.out} output_dir=DIR")
    return 0

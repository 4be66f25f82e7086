"""Which pixels of an image a network sees: the middle of it, square or not."""

import argparse
from typing import Any

from torch import Tensor

from poa_ds.data.image.views import center_view, covering_view
from poa_ds.recipe.tree import Recipe
from poa_ds.system import arguments
from poa_ds.system.errors import UsageError

COVERS = "covers"  # in the place of pixels of the short side: until it covers the crop


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say it in the place of a recipe's evaluation."""
    parser.add_argument(
        "--resize", type=arguments.count, help="pixels of the short side (recipe's evaluation's)"
    )
    parser.add_argument(
        "--crop",
        type=arguments.sides,
        metavar="PIXELS|ROWSxCOLUMNS",
        help="of the middle that is seen (recipe's evaluation's); an image is resized until it "
        "covers two sides",
    )


def seen(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """resize and crop of a setting, as the options say; a crop of two sides is a text.

    UsageError: whole patches do not fill it, or an image does not.
    """
    usual, patch = recipe.evaluation, recipe.backbone.patch_size
    resize, (rows, columns) = args.resize, args.crop or (usual.crop, usual.crop)
    for side in (rows, columns):
        if side % patch:
            near = max(patch, side // patch * patch)
            raise UsageError(
                f"--crop: {side} is not a multiple of backbone.patch_size {patch}: {near} or"
                f" {near + patch} would be"
            )
    if rows != columns:
        if resize:
            raise UsageError(
                f"--resize {resize}: an image is resized until it covers --crop {rows}x{columns}"
            )
        return {"resize": COVERS, "crop": f"{rows}x{columns}"}
    short = resize or max(usual.resize, rows)
    if short < rows:
        raise UsageError(f"--resize {short} is below the crop of {rows} pixels")
    return {"resize": short, "crop": rows}


def sides_of(crop: int | str) -> tuple[int, int]:
    """(rows, columns) of a setting's crop."""
    return arguments.sides(str(crop))


def view(image: Tensor, resize: int | str, crop: int | str) -> Tensor:
    """(C, rows, columns) of an image, as a setting says."""
    if isinstance(resize, str):
        return covering_view(image, *sides_of(crop))
    return center_view(image, resize, int(crop))

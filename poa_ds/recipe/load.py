"""From a YAML file and overrides to a checked Recipe.

The tree itself is in tree.py; every mistake of the user is found here, before anything starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from poa_ds.recipe import shipped
from poa_ds.recipe.checks import check, check_kept
from poa_ds.recipe.tree import Recipe
from poa_ds.system.addresses import Address
from poa_ds.system.errors import UsageError
from poa_ds.system.paths import expanded
from poa_ds.system.typed_yaml import build, dump, override, parse

T = TypeVar("T")


def from_dict(tree: Mapping[str, Any]) -> Recipe:
    """The checked Recipe of nested mappings; missing keys take the defaults of tree.py."""
    found = _expanded(build(Recipe(), tree))
    check(found)
    return found


def _expanded(recipe: Recipe) -> Recipe:
    """With ~ and $VARIABLES replaced in every path and address; a kept recipe has none left."""
    data, evaluation, mlflow = recipe.data, recipe.evaluation, recipe.mlflow

    def place(key: str, text: str) -> str:
        try:
            return expanded(text)
        except UsageError as error:
            raise UsageError(f"{key} is {error}") from error

    def section(name: str, options: T, *keys: str) -> T:
        return replace(options, **{k: place(f"{name}.{k}", getattr(options, k)) for k in keys})

    mix = {place("data.mix", folder): share for folder, share in data.mix.items()}
    uri = mlflow.uri  # only that of a file is a path; others may hold a password with a $
    if uri.startswith("sqlite:"):
        uri = Address(place("mlflow.uri", uri))
    return replace(
        recipe,
        output_dir=place("output_dir", recipe.output_dir),
        start=place("start", recipe.start),
        distill=section("distill", recipe.distill, "teacher"),
        data=replace(section("data", data, "train", "cache"), mix=mix),
        evaluation=section("evaluation", evaluation, "queries", "bank"),
        finetune=section("finetune", recipe.finetune, "subset"),
        mlflow=replace(mlflow, uri=uri),
    )


def kept(tree: Mapping[str, Any]) -> Recipe:
    """The Recipe that a run has kept: as it was, whatever a new run would be told about it."""
    found = build(Recipe(), _moved(tree))
    check_kept(found)
    return found


def _moved(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """With objective.slow_start where it stood in slimmable, which dspnet alone followed."""
    old, objective = tree.get("slimmable"), tree.get("objective") or {}
    if not isinstance(old, Mapping) or "slow_start" not in old:
        return tree
    rest = {key: value for key, value in old.items() if key != "slow_start"}
    share = {"slow_start": old["slow_start"]} if objective.get("method") == "dspnet" else {}
    return {**tree, "slimmable": rest, "objective": {**share, **objective}}


def recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """The checked Recipe of a YAML file with `a.b=c` overrides on top, the last one winning.

    path: may be the name of a shipped recipe. None: of the defaults alone.
    """
    tree = _read(shipped.find(path, ".yaml")) if path else {}
    for assignment in overrides:
        tree = override(tree, assignment, Recipe)
    return from_dict(tree)


def kept_recipe(path: Path) -> Recipe:
    """The Recipe in a file that a run has written; an empty one is damaged, and no recipe."""
    if not (tree := _read(path)):
        raise UsageError(f"{path} is empty: it is not the recipe that a run has kept")
    return kept(tree)


def _read(path: Path) -> dict[str, Any]:
    tree = parse(shipped.text(path, "recipe"), source=str(path)) or {}
    if not isinstance(tree, dict):
        raise UsageError(f"recipe {path}: expected `key: value` lines, found {type(tree).__name__}")
    return tree


def to_yaml(recipe: Recipe) -> str:
    """The whole Recipe as YAML: `recipe` of this text gives the same Recipe."""
    return dump(recipe)

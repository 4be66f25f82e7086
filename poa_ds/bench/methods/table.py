"""What is compared: named variants of a recipe, read from a small YAML file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poa_ds.recipe import shipped
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import build, parse

TABLES = Path(__file__).with_name("tables")
NAME = re.compile(r"[A-Za-z0-9_.-]+")  # a part of folder names


@dataclass(frozen=True)
class Variant:
    """One way to train all sizes of the table."""

    recipe: str = ""  # a shipped one or a path; empty: the table's
    set: tuple[str, ...] = ()  # key=value overrides, beside the table's
    alone: bool = False  # by one run for each size, which knows that size alone
    teacher: str = ""  # a variant whose run of the same seed is distill.teacher


@dataclass(frozen=True)
class Head:
    """What all variants share."""

    recipe: str = ""
    data: str = ""  # a folder with the shard folders train and val
    against: str = ""  # the variant that the others are held against
    sizes: tuple[str, ...] = ()  # WIDTHxDEPTH; a variant without one of them has no figure there
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """name: of the file, without its ending."""

    name: str
    head: Head
    variants: Mapping[str, Variant] = field(default_factory=dict)


def names() -> list[str]:
    """The tables that are shipped."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def read(given: str) -> Table:
    """The shipped table of that name, or the one in that file; UsageError names what is wrong."""
    path = TABLES / f"{given}.yaml" if given in names() else Path(given)
    if not path.is_file():
        raise UsageError(f"--table {given}: no such file; shipped: {', '.join(names())}")
    tree = parse(shipped.text(path, "table"), source=str(path))
    try:
        return _built(path.stem, tree)
    except UsageError as error:
        raise UsageError(f"table {path}: {error}") from error


def _built(name: str, tree: Any) -> Table:
    if not isinstance(tree, dict) or not isinstance(tree.get("variants"), dict):
        raise UsageError("it is no mapping with a section `variants`")
    head = build(Head(), {key: value for key, value in tree.items() if key != "variants"})
    variants = {}
    for label, keys in tree["variants"].items():
        if not NAME.fullmatch(str(label)):
            raise UsageError(f"the variant {label!r}: letters, digits, _ . - make its name")
        try:
            variants[str(label)] = build(Variant(), keys)
        except UsageError as error:
            raise UsageError(f"variants.{label}: {error}") from error
    _check(head, variants)
    return Table(name, head, variants)


def _check(head: Head, variants: Mapping[str, Variant]) -> None:
    if not head.sizes:
        raise UsageError("sizes is empty: name those that are compared")
    if head.against not in variants:
        raise UsageError(f"against {head.against!r} is none of its variants {', '.join(variants)}")
    for name, variant in variants.items():
        if not (variant.recipe or head.recipe):
            raise UsageError(f"variants.{name} has no recipe, and the table has none for all")
        if variant.alone and variant.teacher:
            raise UsageError(f"variants.{name}: alone and teacher exclude each other")
        other = variants.get(variant.teacher)
        if variant.teacher and (other is None or other.teacher or other.alone):
            raise UsageError(
                f"variants.{name}.teacher {variant.teacher!r} must be a variant with one run that"
                " has no teacher itself"
            )

"""What is compared: named variants of a recipe, read from a small YAML file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from poa_ds.recipe import shipped
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import build, parse

TABLES = Path(__file__).with_name("tables")
NAME = re.compile(r"[A-Za-z0-9_.-]+")  # a part of folder names
Equal = Literal["images", "flops", "own"]


@dataclass(frozen=True)
class Variant:
    """One way to train all sizes of the table."""

    recipe: str = ""  # a shipped one or a path; empty: the table's
    set: tuple[str, ...] = ()  # key=value overrides, beside the table's
    alone: bool = False  # by one run for each size, which knows that size alone
    sizes: tuple[str, ...] = ()  # some of the table's, which it has figures of; empty: all
    teacher: str = ""  # a variant whose run of the same seed is distill.teacher
    # a variant (its run of the same seed) or a run's folder: what it begins with, and for method
    # seed its teacher too, unless `teacher` names another
    start: str = ""
    rebase: Literal["none", "sort", "rotate"] = "none"  # of `start`, as `poa-ds import --rebase`

    @property
    def needs(self) -> tuple[str, ...]:
        """What must be there before its run: variants, and a folder where `start` is none."""
        return tuple(dict.fromkeys(name for name in (self.teacher, self.start) if name))


@dataclass(frozen=True)
class Head:
    """What all variants share."""

    recipe: str = ""
    data: str = ""  # a folder with the shard folders train and val
    against: str = ""  # the variant that the others are held against
    sizes: tuple[str, ...] = ()  # WIDTHxDEPTH; a variant without one of them has no figure there
    equal: Equal = "images"  # what all variants get alike; own: nothing, each has its own steps
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """name: of the file, without its ending."""

    name: str
    head: Head
    variants: Mapping[str, Variant] = field(default_factory=dict)

    def before(self, name: str) -> tuple[str, ...]:
        """The variants whose runs must be done before those of `name`."""
        return tuple(other for other in self.variants[name].needs if other in self.variants)

    def depth(self, name: str) -> int:
        """How many variants stand before it, one behind the other."""
        return max((1 + self.depth(other) for other in self.before(name)), default=0)


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
        if others := [size for size in variant.sizes if size not in head.sizes]:
            raise UsageError(f"variants.{name}.sizes {', '.join(others)}: not among the table's")
        if variant.alone and variant.needs:
            raise UsageError(f"variants.{name}: alone excludes teacher and start")
        if variant.rebase != "none" and not variant.start:
            raise UsageError(f"variants.{name}: rebase {variant.rebase} without start")
        if variant.teacher and variant.teacher not in variants:
            raise UsageError(f"variants.{name}.teacher {variant.teacher!r} is no variant")
        for key, other in (("teacher", variant.teacher), ("start", variant.start)):
            if other in variants and variants[other].alone:
                raise UsageError(
                    f"variants.{name}.{key} {other!r} must be a variant with one run; it has one"
                    " for each size (alone)"
                )
        if circle := _circle(name, variants):
            raise UsageError(f"variants.{name} comes before itself: {' <- '.join(circle)}")


def _circle(name: str, variants: Mapping[str, Variant]) -> list[str]:
    """A way from it through what it needs back to it; empty: there is none."""
    ways = [[name]]
    while ways:
        way = ways.pop()
        for other in variants[way[-1]].needs:
            if other == name:
                return [*way, other]
            if other in variants and other not in way:
                ways.append([*way, other])
    return []

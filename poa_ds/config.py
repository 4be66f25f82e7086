"""From a YAML file and overrides to a checked Config, and the numbers that follow from it.

The tree itself is in recipe.py; every mistake of the user is found here, before anything starts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poa_ds.checks import check, check_places, check_precision, check_world
from poa_ds.derived import Derived, derived, describe, schedules, space
from poa_ds.ds_json import deepspeed_json, read_json
from poa_ds.errors import UsageError
from poa_ds.recipe import Config
from poa_ds.typed_yaml import build, dump, override, parse

__all__ = [
    "Config",
    "Derived",
    "check",
    "check_places",
    "check_precision",
    "check_world",
    "deepspeed_json",
    "derived",
    "describe",
    "from_dict",
    "load",
    "read_json",
    "schedules",
    "space",
    "to_yaml",
]


def from_dict(tree: Mapping[str, Any]) -> Config:
    """The checked Config of nested mappings; missing keys take the defaults of recipe.py."""
    config = build(Config(), tree)
    check(config)
    return config


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The checked Config of a YAML file with `a.b=c` overrides on top, the last one winning.

    None: of the defaults alone.
    """
    try:
        text = Path(path).read_text() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path}: {error}") from error
    tree = parse(text, source=str(path)) or {}
    if not isinstance(tree, dict):
        raise UsageError(f"recipe {path}: expected `key: value` lines, found {type(tree).__name__}")
    for assignment in overrides:
        tree = override(tree, assignment, Config)
    return from_dict(tree)


def to_yaml(config: Config) -> str:
    """The whole Config as YAML: `load` of this text gives the same Config."""
    return dump(config)

"""From a YAML file and overrides to a checked Config, and the numbers that follow from it.

The tree itself is in recipe.py; every mistake of the user is found here, before anything starts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poa_ds.recipe.checks import check, check_places, check_precision, check_world
from poa_ds.recipe.derived import Derived, derived, describe, schedules, space
from poa_ds.recipe.ds_json import deepspeed_json, read_json
from poa_ds.recipe.tree import Config
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import build, dump, override, parse, plain

__all__ = [
    "Config",
    "Derived",
    "changes",
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


def changes(before: str, config: Config) -> list[str]:
    """What differs from an earlier recipe (its `to_yaml` text), one "key: old -> new" each."""
    old, new = _flat(parse(before, source="the earlier recipe") or {}), _flat(plain(config))
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        deeper = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return flat


def to_yaml(config: Config) -> str:
    """The whole Config as YAML: `load` of this text gives the same Config."""
    return dump(config)

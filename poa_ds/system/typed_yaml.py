"""YAML and `a.b=c` overrides into a tree of frozen dataclasses, whatever the keys mean.

Every mistake is a UsageError that names the key, its value and what is allowed.
"""

import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from poa_ds.system.addresses import without_passwords
from poa_ds.system.errors import UsageError
from poa_ds.system.json_text import LARGEST

T = TypeVar("T")


@dataclass(frozen=True)
class Bounds:
    """The allowed range of a number, as in `Annotated[float, Bounds(0, 1)]`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, x: float) -> bool:
        above = x > self.low if self.open_low else x >= self.low
        return above and (x < self.high if self.open_high else x <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        high = f"{'below' if self.open_high else 'at most'} {self.high:g}"
        return " and ".join(
            text for text, end in ((low, self.low), (high, self.high)) if math.isfinite(end)
        )


@dataclass(frozen=True, eq=False)
class OneOf:
    """The allowed texts: the keys of a table, those included that join it later."""

    table: Mapping[str, object]

    def __contains__(self, text: str) -> bool:
        return text in self.table

    def __str__(self) -> str:
        return f"one of {', '.join(self.table)}"


@dataclass(frozen=True)
class NamesOf:
    """One of the texts, or several of them by commas; `alone` goes with no other."""

    texts: tuple[str, ...]
    alone: str

    def __contains__(self, text: str) -> bool:
        found = [part.strip() for part in text.split(",")]
        known = len(set(found)) == len(found) and set(found) <= {*self.texts, self.alone}
        return known and (self.alone not in found or len(found) == 1)

    def __str__(self) -> str:
        return f"one or more of {', '.join(self.texts)} by commas, or {self.alone}"


Count = Annotated[int, Bounds(1)]
CountOrNone = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, open_low=True)]
NotNegative = Annotated[float, Bounds(0)]
Share = Annotated[float, Bounds(0, 1)]


DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 5e-4 is a number, `on` is text, 12:30 is not a number; no key twice."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own class attribute

    def fetch_flow_collection_start(self, token: type) -> None:
        """At `[` and `{`; PyYAML takes quadratic time for them, recipes need three levels."""
        if self.flow_level >= DEEPEST:
            raise yaml.scanner.ScannerError(
                problem="it is nested too deeply", problem_mark=self.get_mark()
            )
        super().fetch_flow_collection_start(token)


for _tag, _pattern in (
    ("null", r"~|null|Null|NULL|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?(0|[1-9][0-9]*)"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), None
    )


MERGE = "tag:yaml.org,2002:merge"


def brief(value: object) -> str:
    """The value as it is shown: of a long or deep one (anchors make it grow) the beginning."""
    return _BRIEF.repr(value)


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 120, 120
        self.maxlist = self.maxtuple = self.maxdict = 6

    def repr_str(self, text: str, level: int) -> str:
        return super().repr_str(without_passwords(text), level)  # before it is cut


_BRIEF = _Brief()


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in seen or key_node.tag == MERGE:  # merged mappings grow tenfold with each level
            what = "is there twice" if key in seen else "would merge another mapping"
            raise yaml.constructor.ConstructorError(
                problem=f"the key {brief(key)} {what}", problem_mark=key_node.start_mark
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def parse(text: str, *, source: str) -> Any:
    """The value that a YAML text stands for; `source` names it in the message."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise UsageError(f"{source} is not valid YAML: it is nested too deeply") from None
    # the others: a tag such as !!int before what is none, a number of thousands of digits
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{source} is not valid YAML: {error}") from error


def override(tree: dict, assignment: str, cls: type) -> dict:
    """`tree` with one `a.b=c` applied; the key must exist in the dataclass `cls`."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UsageError(f"override {brief(assignment)} is not of the form key=value")
    hint = _hint_of(key, cls)
    if isinstance(hint, type) and issubclass(hint, str) and text[:1] not in ("'", '"'):
        value: Any = text  # a run called 2024, an empty path: the text as it stands
    else:
        value = parse(text, source=f"the value of {key}")
    if is_dataclass(hint) and isinstance(value, dict):  # a section changes key by key
        for part, item in value.items():
            tree = _with(tree, [*key.split("."), part], item)
        return tree
    return _with(tree, key.split("."), value)


def _with(tree: object, keys: Sequence[str], value: object) -> dict:
    tree = tree if isinstance(tree, dict) else {}
    rest = _with(tree.get(keys[0]), keys[1:], value) if keys[1:] else value
    return {**tree, keys[0]: rest}


def build(default: T, tree: object) -> T:
    """`default`, a tree of dataclasses, with the values of nested mappings in their places."""
    return _section(default, tree, "", type(default))


def _section(default: T, tree: object, path: str, root: type) -> T:
    tree = {} if tree is None else tree  # all keys of a section are commented out
    hints = _hints(type(default))
    if not isinstance(tree, Mapping):
        keys = ", ".join(hints)
        raise UsageError(
            f"{path or 'the recipe'} is {brief(tree)}: it is a section with the keys {keys}"
        )
    values = {}
    for key, value in tree.items():
        below = f"{path}.{key}" if path else str(key)
        if key not in hints:
            raise _unknown(below, root)
        current = getattr(default, key)
        if is_dataclass(current):
            values[key] = _section(current, value, below, root)
        elif not (current == () and value == []):  # a list that may be empty is so by default
            values[key] = _value(hints[key], value, below)
    return replace(default, **values)


def _value(hint: Any, value: object, path: str) -> Any:
    """`value` as the type `hint` says, or a UsageError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if isinstance(arguments[1], NamesOf) and isinstance(value, list):
            value = ",".join(map(str, value))  # [a, b] is a,b
        number = _value(arguments[0], value, path)
        if number not in arguments[1]:
            raise UsageError(f"{path} is {brief(value)}: it must be {arguments[1]}")
        return number
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{path} is {brief(value)}: allowed are {', '.join(arguments)}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, path)
    if origin in (Mapping, dict):
        return _map(arguments[1], value, path)
    if type(value) is int and abs(value) > LARGEST:
        raise UsageError(f"{path} is {brief(value)}: at most 64 bits")
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if isinstance(hint, type) and issubclass(hint, str) and hint is not str:
        return hint(_value(str, value, path))
    if hint is not float and type(value) is hint:  # a bool is not an int here
        return value
    raise UsageError(f"{path} is {brief(value)}: expected {_NAMES[hint]}")


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _tuple(arguments: tuple, value: object, path: str) -> tuple:
    endless = arguments[-1] is Ellipsis
    if endless and arguments[0] is str and isinstance(value, str):
        value = [part.strip() for part in value.split(",")]  # sizes=small,base
    length = "a list" if endless else f"a list of {len(arguments)} values"
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UsageError(f"{path} is {brief(value)}: expected {length}, as in [a, b]")
    if len(value) == 0 or not (endless or len(value) == len(arguments)):
        raise UsageError(
            f"{path} is {brief(value)}: expected {length}{' that is not empty' * endless}"
        )
    hints = [arguments[0]] * len(value) if endless else arguments
    return tuple(
        _value(hint, item, f"{path}[{i}]")
        for i, (hint, item) in enumerate(zip(hints, value, strict=True))
    )


def _map(hint: Any, value: object, path: str) -> Mapping:
    """Names with a value of one type each, such as {small: 384x12}."""
    if not isinstance(value, Mapping):
        kind = "text" if hint is str else "number"
        raise UsageError(f"{path} is {brief(value)}: expected name: {kind}, one per line")
    for key in value:
        if not isinstance(key, str):
            raise UsageError(f"{path}.{key} is {brief(value[key])}: expected a name, quoted")
    return {key: _value(hint, item, f"{path}.{key}") for key, item in value.items()}


def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def leaves(cls: type, path: str = "") -> Iterator[str]:
    """Every dotted key of the tree that holds a value."""
    for name, hint in _hints(cls).items():
        if is_dataclass(hint):
            yield from leaves(hint, f"{path}{name}.")
        else:
            yield path + name


def _hint_of(key: str, cls: type) -> Any:
    hint: Any = cls
    for part in key.split("."):
        if get_origin(hint) in (Mapping, dict):
            return get_args(hint)[1]
        if not is_dataclass(hint) or part not in _hints(hint):
            raise _unknown(key, cls)
        hint = _hints(hint)[part]
    return hint


def _unknown(key: str, root: type) -> UsageError:
    known = list(leaves(root))
    sections = {name.rsplit(".", 1)[0] for name in known if "." in name}
    by_end = {name.rsplit(".", 1)[-1]: name for name in [*sections, *known]}
    end = key.rsplit(".", 1)[-1]
    near = get_close_matches(key, [*known, *sections], n=1, cutoff=0.75)
    near = near or [by_end[name] for name in by_end if end in name.split("_")]  # lr: base_lr
    near = near or [by_end[name] for name in get_close_matches(end, by_end, n=1, cutoff=0.6)]
    hint = f"; the nearest known key is {near[0]}" if near else f"; sections: {sorted(sections)}"
    return UsageError(f"unknown key {brief(key)[1:-1]}{hint}")


def plain(value: object) -> Any:
    """A dataclass tree as dictionaries, lists and scalars, in the order of its fields."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, str):  # of a kind of its own, such as an address
        return str(value)
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of nested mappings."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        deeper = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if deeper else {f"{prefix}{key}": value}
    return found


class _Dumper(yaml.SafeDumper):
    """One key per line, lists on one line."""


_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", items, flow_style=True
    ),
)


def dump(value: object) -> str:
    """The dataclass tree as YAML text that `parse` and `build` turn into the same tree."""
    return yaml.dump(plain(value), Dumper=_Dumper, sort_keys=False, width=100)

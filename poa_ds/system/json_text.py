"""JSON that anybody may have written: whatever is wrong with it is a ValueError that says so."""

import json
import math
from collections.abc import Mapping
from typing import Any

LARGEST = 2**63 - 1  # of a whole number: what files, stores and arrays can hold


def parse(text: str | bytes, **options: Any) -> Any:
    """What the text stands for. ValueError: it is no JSON, or nested beyond all measure."""
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: str | bytes, /, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """The same for {"name": ...} with values of these kinds, at least."""
    found = parse(text)
    if not isinstance(found, dict):
        raise ValueError(f"it is a {type(found).__name__}, not an object {{...}}")
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"it has no {name!r}")
        if not is_of(found[name], kind):
            raise ValueError(f"{name!r} is {str(found[name])[:40]!r}")
    return found


def is_of(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether it is of that kind: float takes finite numbers, int whole ones from 0 on."""
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) <= LARGEST and math.isfinite(value)
    if kind is int:
        return type(value) is int and 0 <= value <= LARGEST
    return isinstance(value, kind)


def numbers(values: Mapping[str, Any]) -> None:
    """ValueError unless all values are finite numbers."""
    for name, value in values.items():
        huge = isinstance(value, float) and math.isfinite(value)  # of a run that diverges
        if not (huge or is_of(value, float)):
            raise ValueError(f"{name!r} is {str(value)[:40]!r}, not a number")

"""Constants of GPUs that were measured: the file that `poa-ds bench gpu` writes and the plan reads.

JSON: kind of GPU -> name of the constant -> value, unit, source.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from poa_ds.plan.constants import GPUS, Constant
from poa_ds.system import json_text
from poa_ds.system.errors import UsageError

SHIPPED = Path(__file__).with_name("measured.json")  # once there is one, used without being named
NAMES = ("efficiency", "bandwidth", "bandwidth_share")

Constants = Mapping[str, Constant]


def kind_of(name: str) -> str | None:
    """The kind of GPU that a driver calls so; None: the plan does not know it."""
    found = [kind for kind, gpu in GPUS.items() if name.endswith(gpu.name)]
    return found[0] if found else None


def text(kind: str, constants: Constants) -> str:
    """The file with the constants of one kind."""
    found = {kind: {name: asdict(constant) for name, constant in constants.items()}}
    return json.dumps(found, indent=1) + "\n"


def of_kind(kind: str, given: Path | None) -> Constants:
    """The measured ones of that kind, of the file given or of the shipped one; {} if none are."""
    path = given or SHIPPED
    if not given and not path.exists():
        return {}
    try:
        every = json_text.parse_object(path.read_bytes())
        if given and kind not in every:
            has = ", ".join(every) or "nothing"
            raise UsageError(f"--measured {path} has constants of {has}, --gpu is {kind}")
        return {name: _constant(name, found) for name, found in every.get(kind, {}).items()}
    except OSError as error:
        raise UsageError(f"--measured {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"--measured {path} is no file of `poa-ds bench gpu`: {error}") from error


def _constant(name: str, found: Mapping[str, Any]) -> Constant:
    """ValueError: it cannot be measured, or it is no such number."""
    if name not in NAMES:
        raise ValueError(f"{name} is none of {', '.join(NAMES)}")
    constant = Constant(**found)
    most = math.inf if name == "bandwidth" else 1.0
    if not json_text.is_of(constant.value, float) or not 0 < constant.value <= most:
        raise ValueError(f"{name} is {constant.value!r}: a number above 0 and at most {most:g}")
    return constant

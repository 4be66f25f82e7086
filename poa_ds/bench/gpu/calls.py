"""What `poa-ds bench gpu` consists of: parts, and the programs that each part runs one by one."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from poa_ds.system import files, json_text
from poa_ds.system.errors import UserError

ROOT = Path(__file__).parents[3]
Figures = dict[str, float | str]  # what it is, with its unit -> the figure
# impossible: here it cannot exist, and `why` says for what reason. The last three are repeated, the
# first of them goes on where it has stopped
Status = Literal["done", "impossible", "unfinished", "failed", "timed out"]
FINAL: tuple[Status, ...] = ("done", "impossible")


@dataclass(frozen=True)
class Call:
    """One program. words: behind `python -m`.

    figures: read what it has left; UserError where that is not as it should be. expected: its exit
    status. stop: when it is asked to stop (SIGTERM). goes_on: it is a training, which stops before
    the limit and goes on when it is begun again. fresh: a folder of an earlier attempt, removed
    before. unless: a file whose presence means that nothing is to be done. files: written before.
    collects: it reads what the part's other calls have left, and is made anew behind any of them.
    impossible: why it cannot be here; empty where it can.
    """

    name: str
    words: tuple[str, ...] = ()
    figures: Callable[[], Figures] = dict
    expected: int = 0
    stop: Callable[[], bool] | None = None
    goes_on: bool = False
    fresh: Path | None = None
    unless: Path | None = None
    files: Mapping[Path, str] = field(default_factory=dict)
    collects: bool = False
    impossible: str = ""


@dataclass(frozen=True)
class Part:
    """Calls that share a time limit. share: of the budget, beside those of the other parts."""

    name: str
    title: str
    share: float
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Outcome:
    """How a call went. why: of all that is not done. commit: of the code that ran."""

    status: Status
    why: str = ""
    command: str = ""
    seconds: float = 0.0
    date: str = ""
    commit: str = ""
    figures: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """Where it is measured and how large.

    out: the folder of everything that is written. cifar: that of CIFAR-10's archive.
    """

    out: Path
    device: Literal["cuda", "cpu"]
    smoke: bool
    cifar: Path | None = None

    @property
    def shards(self) -> Path:
        return self.out / "shards"

    @property
    def report(self) -> Path:
        """All figures in Markdown."""
        return (self.out / "report").with_suffix(".md")

    @property
    def constants(self) -> Path:
        """What `poa-ds plan` reads."""
        return self.out / "plan.json"

    def record(self, name: str) -> Path:
        """The file that a program leaves its figures in."""
        return self.out / "records" / f"{name}.json"

    def log(self, part: str, call: str) -> Path:
        """What a program has printed."""
        return self.out / "logs" / f"{part}.{call.replace(' ', '_').replace(',', '')}.log"

    def shown(self, text: str) -> str:
        """The text without the places of this machine: OUT and CIFAR stand for its folders."""
        names = {self.out: "OUT", ROOT: "CHECKOUT", Path(sys.prefix): "PYTHON"}
        if self.cifar:
            names[self.cifar] = "CIFAR"
        for folder in sorted(names, key=lambda folder: -len(str(folder))):
            text = re.sub(rf"{re.escape(str(folder))}(?![\w.-])", names[folder], text)
        return text

    def outcomes(self, part: str) -> dict[str, Outcome]:
        """Of the calls of a part so far, by their names."""
        path = self.outcomes_file(part)
        if not path.exists():
            return {}
        try:
            found = json_text.parse(path.read_bytes())
            return {name: Outcome(**outcome) for name, outcome in found.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): remove it to measure anew") from error

    def keep(self, part: str, outcomes: Mapping[str, Outcome]) -> None:
        """On the disk when this returns."""
        found = {name: asdict(outcome) for name, outcome in outcomes.items()}
        files.replace_text(self.outcomes_file(part), json.dumps(found, indent=1) + "\n")

    def outcomes_file(self, part: str) -> Path:
        return self.out / "parts" / f"{part}.json"

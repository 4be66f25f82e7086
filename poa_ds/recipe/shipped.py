"""The recipes and DeepSpeed files that come with the package, found by name from any folder.

They lie in `ds_configs/` of a checkout; an installation carries that folder inside the package.
"""

import argparse
import difflib
from pathlib import Path

from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError

PACKAGE = Path(__file__).parents[1]
FOLDER = next(
    place for place in (PACKAGE / "ds_configs", PACKAGE.parent / "ds_configs") if place.is_dir()
)
LONGEST = 1_000_000  # characters of a recipe or DeepSpeed file
HOMES = (Path(), Path("ds_configs"))  # a name alone, or as the documents write it


def names(ending: str) -> list[str]:
    """What is shipped: `.yaml` recipes or `.json` DeepSpeed files, without the ending."""
    return sorted(path.stem for path in FOLDER.glob(f"*{ending}"))


def find(given: Path, ending: str) -> Path:
    """The file of that path, or else the shipped one of that name; UsageError with near names."""
    if given.exists() and not given.is_dir():
        return given
    shipped = FOLDER / f"{given.name.removesuffix(ending)}{ending}"
    if given.parent in HOMES and shipped.is_file():
        return shipped
    near = difflib.get_close_matches(
        given.name.removesuffix(ending), names(ending), n=3, cutoff=0.5
    )
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped: {', '.join(names(ending))}"
    raise UsageError(f"{given}: no such file, nor a shipped one of this name; {hint}")


def text(path: Path, kind: str) -> str:
    """What is in the file; `kind`: what it should be. UsageError: it is no text, or too long."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            found = file.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{kind} {path}: {error}") from error
    if len(found) > LONGEST:
        raise UsageError(f"{kind} {path} has more than {LONGEST:,} characters: it is none")
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds recipes`."""
    parser.add_argument(
        "name",
        nargs="?",
        type=paths.path,
        help="print this one as it is (without: list them all)",
    )


def run(args: argparse.Namespace) -> int:
    """Print every shipped file in one line, or the text of one."""
    if args.name:
        ending = ".json" if args.name.stem in names(".json") else ".yaml"
        tell(text(find(args.name, ending), "recipe").rstrip("\n"))
        return 0
    width = max(map(len, names(".yaml") + names(".json"))) + 2
    print("recipes (--config NAME):")
    for name in names(".yaml"):
        print(f"  {name:<{width}}{_first_sentence((FOLDER / f'{name}.yaml').read_text())}")
    print("DeepSpeed files (--deepspeed_config NAME):")
    for name in names(".json"):
        print(f"  {name:<{width}}{' '.join((FOLDER / f'{name}.json').read_text().split())}")
    return 0


def _first_sentence(text: str) -> str:
    """The head of a recipe's opening comment, up to the first empty line of it."""
    comment = text.split("\n#\n")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in comment)

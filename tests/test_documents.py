"""What the documents say is so: files and sections that they cite, packages, figures, output."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from poa_ds.cli import main
from poa_ds.commands import COMMANDS
from poa_ds.recipe import derived, load
from tests.test_architecture import FLOORS, ROOT, text_files

METHOD = ROOT / "docs" / "method.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))
PATH = r"(?<![\w./<-])(?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml|json|png)\b"
WRITTEN_BY_RUNS = r"^(output_dir|step\d+|runs|RUN|OUT|DIR)/"


def sections(document: Path) -> list[str]:
    return re.findall(r"^## (.*)$", document.read_text(), re.MULTILINE)


def test_no_text_cites_a_document_that_is_not_in_the_repository():
    """Names in full, or of a neighbour, or of a file in docs."""
    for path in {*text_files(), *DOCUMENTS}:
        for name in re.findall(r"(?<![\w*])[\w./-]*\w\.md\b", path.read_text()):
            places = (ROOT / name, ROOT / "docs" / name, path.parent / name)
            assert any(place.is_file() for place in places), f"{path}: {name}"


def test_modules_that_the_sources_name_exist():
    """By their last name, or with packages before it."""
    own = {path.relative_to(ROOT).as_posix() for path in text_files() if path.suffix == ".py"}
    written = {"model.py"}  # beside the weights of an export
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in text_files()
        if path.suffix == ".py" and "tests" not in path.parts
        for name in re.findall(r"(?<![\w./{}-])(?:\w+/)*\w+\.py\b", path.read_text())
        if name not in written and not any(f"/{file}".endswith(f"/{name}") for file in own)
    ]
    assert not wrong


def test_cited_sections_exist():
    known = {title.partition(".")[0] for title in sections(METHOD)}
    cited = [
        (path, number)
        for path in text_files()
        for number in re.findall(r"docs/method[.]md (\d+)", path.read_text())
    ]
    assert len(cited) > 10
    assert not {(path, number) for path, number in cited if number not in known}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_documents_name_exist(document: Path):
    names = [m for m in re.findall(PATH, document.read_text()) if not re.match(WRITTEN_BY_RUNS, m)]
    places = (ROOT, document.parent)
    assert not [n for n in names if not any((place / n).exists() for place in places)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_that_documents_print_exist(document: Path):
    """In their blocks; a command is of one word or two."""
    found = re.findall(
        r"^    (?:\$ )?poa-ds ([a-z-]+)(?: ([a-z0-9-]+))?", document.read_text(), re.M
    )
    assert not [words for words in found if not {words[0], " ".join(words)} & {*COMMANDS}]


def test_the_drawing_shows_the_floors():
    text = (ROOT / "docs" / "architecture.md").read_text()
    drawing = text.partition("## The floors")[2].partition("\n## ")[0]
    lines = re.findall(r"^    (\S.*)$", drawing, re.MULTILINE)
    packages = [re.match(r"((?:\w+  )*\w+)  +\S", line)[1] for line in lines]
    assert [" ".join(line.split()) for line in packages] == list(reversed(FLOORS))


def test_numbers_of_sizes_are_those_of_the_recipes():
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|$", METHOD.read_text(), re.MULTILINE)
    assert len(rows) == 3
    for name, sizes, entries in rows:
        space = derived.space(load.recipe(ROOT / "ds_configs" / f"{name}.yaml"))
        assert (len(space.subnets()), len(space.menu())) == (int(sizes), int(entries)), name


def test_the_table_of_recipes_is_right():
    """`name.yaml` | 143, from 384x12 to 1024x24: for every recipe that a row describes alone."""
    text = (ROOT / "docs/howto/recipes.md").read_text()
    rows = re.findall(r"^\| `(\w+)\.yaml` \| (\d+)[^|]*, from (\S+) to (\S+) ", text, re.MULTILINE)
    assert len(rows) >= 7
    for name, sizes, smallest, largest in rows:
        space = derived.space(load.recipe(ROOT / "ds_configs" / f"{name}.yaml"))
        found = (len(space.subnets()), str(space.smallest), str(space.intact))
        assert found == (int(sizes), smallest, largest), name


def excerpts() -> Iterator[tuple[str, str, list[str]]]:
    """(document, command, lines below it) of every excerpt that begins with `$ poa-ds`."""
    for document in DOCUMENTS:
        blocks = re.findall(r"^    \$ (poa-ds .*)\n((?:    .*\n|\n)*)", document.read_text(), re.M)
        for command, below in blocks:
            yield document.name, command, [line[4:].rstrip() for line in below.splitlines()]


@pytest.mark.parametrize(("document", "command", "lines"), list(excerpts()))
def test_excerpts_are_what_the_program_prints(
    document: str, command: str, lines: list[str], capsys, monkeypatch: pytest.MonkeyPatch
):
    """Line by line, figures included. `...` stands for lines that are left out."""
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)[1:]) == 0
    printed = iter(capsys.readouterr().out.splitlines())
    skips = True  # what comes before an excerpt is left out
    for wanted in filter(None, lines):
        if wanted == "...":
            skips = True
            continue
        found = next(line for line in printed if line.rstrip())
        while skips and found.rstrip() != wanted:
            found = next(printed, None)
            assert found is not None, f"{document}, `{command}` does not print: {wanted}"
        assert found.rstrip() == wanted, f"{document}, `{command}`"
        skips = False


@pytest.mark.parametrize("book", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_what_a_run_leaves(book: Path):
    found = json.loads(book.read_bytes())
    cells = found["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse("".join(cell["source"]))
    assert [cell["metadata"].get("tags") for cell in cells].count(["parameters"]) == 1
    assert set(found["metadata"]) == {"kernelspec", "language_info"}
    assert found["metadata"]["kernelspec"]["name"] == "python3"  # of any installation

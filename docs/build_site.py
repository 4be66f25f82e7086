"""The documents as a site: `make docs`, which asks nothing of the network.

Beside the pages that stand here it has some that are written from the sources: the commands, the
keys of a recipe, the names of `import poa_ds`; and the documents of the checkout's root.
"""

import ast
import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from sphinx.cmd.build import build_main

import poa_ds
from poa_ds import cli
from poa_ds.recipe import tree

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FRONT = "index.md"
OF_THE_ROOT = {"BENCHMARKS.md": "benchmarks.md", "CHANGELOG.md": "changelog.md", "README.md": FRONT}
WIDTH = "96"  # columns of a command's help


def main(out: Path) -> int:
    """Write the site to `out`/site; Sphinx's exit status. A warning (a dead link) is an error."""
    source = out / "source"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(DOCS / "conf.py", source)
    (source / "reference").mkdir()
    for name, text in (("commands", commands()), ("recipe", recipe()), ("python", python())):
        (source / "reference" / f"{name}.md").write_text(text)
    for page in DOCS.rglob("*.md"):
        text = relinked(page.read_text(), page, page)
        (source / page.relative_to(DOCS)).write_text(text)
    for book in DOCS.rglob("*.ipynb"):
        (source / book.relative_to(DOCS)).with_suffix(".md").write_text(notebook(book))
    for name, page in OF_THE_ROOT.items():
        if page != FRONT:
            text = relinked((ROOT / name).read_text(), ROOT / name, DOCS / page)
            (source / page).write_text(text)
    return build_main(["-q", "-W", "--keep-going", "-b", "html", str(source), str(out / "site")])


def notebook(path: Path) -> str:
    """Its cells as a page, which offers the notebook itself."""
    parts = []
    for cell in json.loads(path.read_bytes())["cells"]:
        text = "".join(cell["source"]).rstrip()
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{text}\n```" if is_code else relinked(text, path, path))
    parts.insert(1, f"This page is a notebook: {{download}}`{path.name}`.")
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """What every command answers to --help."""
    parts = ["# Commands\n"]
    for name, command in cli.COMMANDS.items():
        answer = io.StringIO()
        with (
            mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1"}),
            contextlib.redirect_stdout(answer),
            contextlib.suppress(SystemExit),
        ):
            cli.main([*name.split(), "--help"])
        parts.append(f"## {name}\n\n{_sentence(command.summary)}\n\n{_verbatim(answer.getvalue())}")
    return "\n".join(parts)


def recipe() -> str:
    """Every key of a recipe with its type, its default, and the remark beside it in the source."""
    above = (
        "Defaults are those of the published ViT-L/16 run; `poa-ds recipes NAME` prints a recipe."
    )
    return "\n".join([f"# Keys of a recipe\n\n{above}\n", *_section("", tree.Recipe)])


def python() -> str:
    """The names of `import poa_ds`, with signature and docstring."""
    parts = [f"# Names of import poa_ds\n\n{_verbatim(poa_ds.__doc__ or '')}"]
    for name in poa_ds.__all__:
        thing = getattr(poa_ds, name)
        if inspect.ismodule(thing):
            shown, about = f"module poa_ds.{name}", thing
        else:
            about = thing
            with contextlib.suppress(ValueError):
                shown = f"{name}{inspect.signature(thing)}"
        text = _verbatim(shown) + "\n" + _verbatim(inspect.getdoc(about) or "")
        parts.append(f"## {name}\n\n{text}")
    return "\n".join(parts)


def relinked(text: str, document: Path, page: Path) -> str:
    """The text of a document with links that are right where its page stands.

    Documents of the root have pages among the others. What is no page loses its link.
    """

    def of_the_site(match: re.Match) -> str:
        words, target = match.group(1), match.group(2)
        if "://" in target or target.startswith("#"):
            return match.group(0)
        file, _, anchor = target.partition("#")
        found = (document.parent / file).resolve()
        if found.parent == ROOT and found.name in OF_THE_ROOT:
            found = DOCS / OF_THE_ROOT[found.name]
        elif not found.is_relative_to(DOCS) or not found.is_file():
            return words
        found = found.with_suffix(".md") if found.suffix == ".ipynb" else found
        way = os.path.relpath(found, page.parent)
        return f"[{words}]({way}{'#' if anchor else ''}{anchor})"

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", of_the_site, text)


def _section(prefix: str, options: type) -> Iterator[str]:
    remarks, rows, below = _remarks(options), [], []
    for field in dataclasses.fields(options):
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(default) and "\n" not in str(default) and prefix == "":
            below.append((field.name, type(default)))
            continue
        kind, remark = remarks[field.name]
        rows.append(f"| `{prefix}{field.name}` | `{kind}` | `{default!r}` | {remark} |")
    title = prefix.rstrip(".") or "the whole run"
    table = "\n".join(["| key | type | default | |", "|---|---|---|---|", *map(_in_a_cell, rows)])
    yield f"## {title}\n\n{inspect.getdoc(options)}\n\n{table}\n"
    for name, kind in below:
        yield from _section(f"{name}.", kind)


def _in_a_cell(row: str) -> str:
    """`a | b` inside of a code span would end the cell."""
    return re.sub(r"`[^`]*`", lambda span: span.group(0).replace("|", r"\|"), row)


def _remarks(options: type) -> dict[str, tuple[str, str]]:
    """Type as written and comment, above a field or behind it, of each field of a dataclass."""
    source = textwrap.dedent(inspect.getsource(options))
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        above, row = [], node.lineno - 2
        while lines[row].strip().startswith("#"):
            above.insert(0, lines[row].strip().lstrip("# "))
            row -= 1
        behind = lines[node.end_lineno - 1].partition("  # ")[2]
        kind = ast.unparse(node.annotation)
        found[node.target.id] = kind, " ".join([*above, behind]).strip().replace("|", r"\|")
    return found


def _verbatim(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

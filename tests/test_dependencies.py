"""What setup.py declares is what the sources import, in both directions."""

import ast
import re
import sys
from collections.abc import Iterator

from tests.test_architecture import ROOT, imports, modules

MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit_image": "skimage", "scikit_learn": "sklearn"}
# declared and named by no import: programs, and what others look for
NOT_IMPORTED = {
    "furo": "docs/conf.py names it",
    "ipykernel": "notebooks run in it",
    "myst_parser": "docs/conf.py names it",
    "pytest_xdist": "a plug-in of pytest",
    "ruff": "a program",
    "onnx": "torch.onnx imports it",
    "onnxscript": "torch.onnx imports it",
    "skimage": "its photographs are the demo's",
    "sklearn": "its photographs are the demo's",
    "sphinx": "docs/build_site.py imports it",
}
# imported where they are there, in tests of remote shards
OPTIONAL = {"s3fs", "moto"}


def declared() -> tuple[set[str], set[str]]:
    """(modules that every installation has, those of extras)."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and n.keywords)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    always = ast.literal_eval(given["install_requires"])
    extras = ast.literal_eval(given["extras_require"])
    return set(named(always)), {name for part in extras.values() for name in named(part)}


def named(requirements: list[str]) -> Iterator[str]:
    for requirement in requirements:
        name = re.match(r"[\w-]+", requirement)[0].lower().replace("-", "_")
        yield MODULES.get(name, name)


def foreign(names: Iterator[str]) -> set[str]:
    own = {"poa_ds", "poa_kernels", "data_tools", "tests"}
    return {name.split(".")[0] for name in names} - own - set(sys.stdlib_module_names)


def imported_by_tests() -> set[str]:
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
                found.add(node.args[0].value)
    return found


def test_every_dependency_is_imported_by_some_module() -> None:
    always, extras = declared()
    sources = foreign(other for name in modules() for other in imports(name))
    assert not always - sources
    assert not extras - sources - foreign(imported_by_tests()) - set(NOT_IMPORTED)


def test_every_import_is_declared() -> None:
    always, extras = declared()
    sources = foreign(other for name in modules() for other in imports(name))
    assert not sources - always - extras
    assert not foreign(imported_by_tests()) - always - extras - OPTIONAL
    assert set(NOT_IMPORTED) <= extras

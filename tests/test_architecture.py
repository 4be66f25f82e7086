"""Who may import whom, and what the source tree must not contain; read from the source text."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from poa_ds.model import architectures
from poa_ds.model.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[1]
SOURCES = {"poa_ds": ROOT, "data_tools": ROOT, "poa_kernels": ROOT / "kernels"}

# From the ground up, packages of one floor side by side: each imports from lower floors only.
FLOORS = (
    "poa_kernels",
    "system",
    "model",
    "recipe",
    "data engine",
    "checkpoint",
    "methods",
    "export",
    "evaluate",
    "track",
    "report",
    "deploy",
    "run",
    "plan",
    "bench",
    "programs",
)
PROGRAMS = {
    "train",
    "launch",
    "front",
    "demo",
    "adapt",
    "finetune",
    "cli",
    "commands",
}  # the modules that stand in poa_ds itself

# libraries that are slow to import, that change often, or that not every machine has
IMPORTERS = {
    "deepspeed": {"poa_ds.engine.engine"},
    "mlflow": {"poa_ds.track.mlflow_client"},
    "plotly": {"poa_ds.report.page"},
    "pycocotools": {"poa_ds.evaluate.detection.coco"},
    "webdataset": {"poa_ds.data.stream"},
    "tensorboard": {"poa_ds.track.tensorboard_store"},
    "triton": {"poa_kernels"},
    "wandb": {"poa_ds.track.wandb_store"},
}
WITHOUT_TORCH = (
    *("data_tools", "poa_ds.cli", "poa_ds.demo", "poa_ds.front", "poa_ds.launch", "poa_ds.train"),
    *("poa_ds.checkpoint.command", "poa_ds.data.store", "poa_ds.model.shape"),
    *(f"{package}.shape" for package in ARCHITECTURES.values()),
    *(f"poa_ds.recipe.{m}" for m in ("checks", "derived", "ds_json", "load", "schedules", "tree")),
    *("poa_ds.report", "poa_ds.run.exit_status", "poa_ds.run.faults"),
    *("poa_ds.run.watchdog", "poa_ds.system.errors", "poa_ds.system.stopping"),
)
TEXT = (".py", ".md", ".yaml", ".json", ".toml", ".txt", ".cfg", "Makefile", "run")
LONGEST, LONGEST_FUNCTION = 350, 60  # lines


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages, packages themselves under their own name."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(nodes: Iterator[ast.AST], name: str) -> Iterator[str]:
    """Full names of what the import statements among the nodes name."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in modules() else node.module


@cache
def imports(name: str) -> frozenset[str]:
    """What the module imports anywhere, inside functions too."""
    return frozenset(imported(ast.walk(ast.parse(modules()[name].read_text())), name))


@cache
def imports_at_once(name: str) -> frozenset[str]:
    """What importing the module imports: all but the imports inside functions."""
    tree = ast.parse(modules()[name].read_text())
    nodes: list[ast.AST] = [tree]
    for node in nodes:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
    return frozenset(imported(iter(nodes), name))


def package(name: str) -> str:
    """The package of a module, a word of FLOORS."""
    top, _, rest = name.partition(".")
    return top if top != "poa_ds" else "programs" if rest in PROGRAMS else rest.split(".")[0]


def floor(name: str) -> int:
    floors = {package: number for number, line in enumerate(FLOORS) for package in line.split()}
    where = package(name)
    assert where in floors, f"the package of {name} has no floor in {Path(__file__).name}"
    return floors[where]


def own(name: str) -> bool:
    return name.split(".")[0] in SOURCES


def is_package(name: str) -> bool:
    return modules()[name].name == "__init__.py"


def text_files() -> list[Path]:
    places = [ROOT, ROOT / ".ci", *(ROOT / name for name in ("poa_ds", "data_tools", "kernels"))]
    places += [ROOT / "tests", ROOT / "ds_configs"]
    found = [path for place in places[:2] for path in place.iterdir()]
    found += [path for place in places[2:] for path in place.rglob("*")]
    return sorted(path for path in found if path.is_file() and path.name.endswith(TEXT))


def test_packages_import_from_lower_floors_only():
    wrong = {
        f"{package(name)}: {name} imports {other}"
        for name in modules()
        if name.startswith("poa_") and not is_package(name)
        for other in imports(name)
        if own(other) and package(other) != package(name) and floor(other) >= floor(name)
    }
    assert not wrong


def test_every_own_import_names_a_module_that_exists():
    wrong = [
        f"{name}: {other}"
        for name in modules()
        for other in imports(name)
        if own(other) and (other not in modules() or is_package(other))
    ]
    assert not wrong


def test_there_are_no_import_cycles():
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a cycle: {' -> '.join((*path, name))}"
        if name not in done:
            for other in filter(own, imports(name)):
                visit(other, (*path, name))
            done.add(name)

    for name in modules():
        visit(name, ())


def test_the_tools_that_write_shards_stay_apart_from_training():
    allowed = (
        "poa_ds.system.arguments",
        "poa_ds.system.console",
        "poa_ds.system.errors",
        "poa_ds.system.files",
        "poa_ds.system.paths",
        "poa_ds.system.printable",
        "poa_ds.system.progress",
        "poa_ds.system.regular",
        "poa_ds.data.store",
        "poa_ds.data.image",
    )
    for name in modules():
        others = {other for other in imports(name) if own(other)}
        if name.startswith("data_tools"):
            used = {other for other in others if other.startswith("poa_ds")}
            assert not {other for other in used if not other.startswith(allowed)}, name
        else:
            assert not {other for other in others if other.startswith("data_tools")}, name


@pytest.mark.parametrize("library", IMPORTERS)
def test_only_its_importer_imports(library: str):
    users = {
        name
        for name in modules()
        if library in {other.split(".")[0] for other in imports(name)}
        and not {name, name.split(".")[0]} & IMPORTERS[library]
    }
    assert not users


def test_mlflow_is_imported_when_tracking_starts():
    names = ["poa_ds.run.training"]
    for name in names:  # grows by what is imported on the way
        assert "mlflow" not in {other.split(".")[0] for other in imports_at_once(name)}, name
        names += [other for other in imports_at_once(name) if own(other) and other not in names]
    assert IMPORTERS["mlflow"] <= {other for name in names for other in imports(name)}


@pytest.mark.parametrize("start", WITHOUT_TORCH)
def test_importing_it_does_not_import_torch(start: str):
    names = [name for name in modules() if name == start or name.startswith(f"{start}.")]
    assert names
    for name in names:  # grows by what is imported on the way
        libraries = {other.split(".")[0] for other in imports_at_once(name)}
        assert not libraries & {"torch", "torchvision", "timm", "deepspeed", "mlflow"}, name
        names += [other for other in imports_at_once(name) if own(other) and other not in names]


def test_no_parser_takes_abbreviations():
    """A new option would change what an old command means."""
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("ArgumentParser", "add_parser"))
        if "allow_abbrev=False" not in ast.unparse(node)
    ]
    assert not wrong


def test_what_is_said_goes_through_the_console():
    """It escapes what a terminal would obey, and takes passwords out of addresses."""
    machine_readable = {"poa_ds.train", "poa_ds.evaluate.sizes", "poa_ds.plan.command"}
    machine_readable |= {"poa_ds.recipe.twin"}
    ours_alone = {"poa_ds.cli", "poa_ds.recipe.shipped", "poa_ds.system.console"}
    wrong = {
        name
        for name, path in modules().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    wrong -= machine_readable | ours_alone
    assert not {n for n in wrong if not n.startswith(("poa_kernels", "poa_ds.bench"))}


def test_package_init_files_are_empty_but_for_the_names_that_the_library_offers():
    assert [
        path for path in modules().values() if path.name == "__init__.py" and path.stat().st_size
    ] == [modules()["poa_ds"]]
    assert imports("poa_ds") == {"importlib"}


def test_no_module_is_named_after_nothing():
    vague = {"utils", "util", "common", "base", "misc", "helpers", "core"}
    assert not [name for name in modules() if name.rpartition(".")[2] in vague]


def test_no_file_and_no_function_is_too_long_to_read():
    long = {}
    for path in (path for path in text_files() if path.suffix == ".py"):
        text = path.read_text()
        long[str(path)] = len(text.splitlines()) - LONGEST
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = 1 + node.end_lineno - node.lineno
                long[f"{path}:{node.lineno} {node.name}"] = lines - LONGEST_FUNCTION
    assert not {what: lines for what, lines in long.items() if lines > 0}, "lines too many"


@pytest.mark.parametrize(
    ("meaning", "pattern"),
    [
        ("an absolute path of somebody's machine", r"(?<![\w.~:/}-])/(work|home|root|Users|tmp)/"),
        ("unfinished work", r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b"),
        (
            "an address that is not the project's own",
            r"https?://(?!github\.com|arxiv\.org|localhost)\w",
        ),
    ],
)
def test_no_text_contains(meaning: str, pattern: str):
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not wrong, meaning


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_backbone_is_a_package_with_the_parts_of_the_table(name: str):
    network = architectures.part(name, "network").NETWORK
    form = architectures.part(name, "names").FORM
    assert network.kind == name
    assert form.module.__name__.endswith(".plain") and form.module.Network
    assert architectures.part(name, "shape").SHAPE.multiple


def test_only_the_backbones_know_which_backbone_it_is():
    """No comparison with a backbone's name: what differs is a method or an entry of a table."""
    kinds = {"vit", "swin", "resnet", "tucker"}
    wrong = []
    for name, path in modules().items():
        if name.startswith("poa_ds.model."):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare | ast.match_case):
                texts = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                texts = {text for text in texts if isinstance(text, str)}
                wrong += [f"{name}:{node.lineno}: {texts & kinds}"] if texts & kinds else []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                classes = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
                classes &= {"ElasticViT", "ElasticSwin", "ElasticResNet", "ElasticTucker"}
                wrong += [f"{name}:{node.lineno}: {classes}"] if classes else []
    assert not wrong

"""The wheel and the sdist, installed where no checkout is; a minute or two."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SOURCE = ("setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt", "Makefile", "LICENSE")
SOURCE += ("README.md", "CHANGELOG.md", "BENCHMARKS.md")
FOLDERS = ("poa_ds", "data_tools", "kernels", "ds_configs", "docs", "tests")
SHIPPED = {path.name for path in (ROOT / "ds_configs").iterdir()}
PATIENCE_SECONDS = 600
# Python 3.11.4 has filters, Debian's 3.11.2 has not; the archive is our own
UNPACK = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


# what a notebook's first cell says, for seconds in the place of minutes
SETTINGS = {
    "own_images": "TRAIN, VAL = 72, 24\nEPOCHS, STEPS = 1, 2",
    "existing_weights": "TRAIN, VAL = 48, 24\nTEACHER_STEPS = 2\nEPOCHS, BATCH = 1, 16",
}


def run(*words: str | Path, cwd: Path) -> str:
    """What the command prints; it knows no PYTHONPATH."""
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(source: Path, out: Path) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "-q")
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", out, source, cwd=out.parent)
    [wheel] = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCE:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    program = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    run(sys.executable, "-c", program, cwd=source)
    [archive] = (source / "dist").iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as an installation from it would."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **UNPACK)
    [source] = folder.iterdir()
    return wheel_of(source, folder / "wheels")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel, and this one's packages behind it."""
    root = tmp_path_factory.mktemp("clean")
    run(sys.executable, "-m", "venv", "--without-pip", root, cwd=root)
    options = ("--no-deps", "--no-index", "-q", "--disable-pip-version-check")
    python = root / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, wheel, cwd=root)
    [packages] = root.glob("lib/*/site-packages")
    libraries = Path(torch.__file__).parents[1]  # a .pth in there, as of a checkout, is not read
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    launcher = root / "bin" / "deepspeed"  # the one here starts this environment's Python
    launcher.write_text(f"#!{python}\nfrom deepspeed.launcher.runner import main\nmain()\n")
    launcher.chmod(0o755)
    return root / "bin"


def test_the_sdist_has_what_a_wheel_is_made_of_and_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"ds_configs/{name}" for name in SHIPPED} <= names
    assert {"setup.py", "pyproject.toml", "constraints.txt", "Makefile", "README.md"} <= names
    assert {"kernels/poa_kernels/table.json", "tests/conftest.py", "docs/method.md"} <= names
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_wheel_has_every_module_the_recipes_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    homes = {"poa_ds": ROOT, "data_tools": ROOT, "poa_kernels": ROOT / "kernels"}
    for package, home in homes.items():
        modules = {str(path.relative_to(home)) for path in (home / package).rglob("*.py")}
        assert modules <= names
    assert {f"poa_ds/ds_configs/{name}" for name in SHIPPED} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == homes.keys()


def test_an_installation_knows_its_recipes_in_any_folder(environment: Path, tmp_path: Path) -> None:
    place = "import poa_ds, data_tools, poa_kernels as k; print(poa_ds, data_tools, k)"
    text = run(environment / "python", "-c", place, cwd=tmp_path)
    assert text.count(str(environment.parent)) == 3
    listed = run(environment / "poa-ds", "recipes", cwd=tmp_path)
    assert all(Path(name).stem in listed for name in SHIPPED if name.endswith((".yaml", ".json")))
    words = ("-m", "poa_ds.train", "--config", "vit_s16_in1k", "--deepspeed_config", "zero2")
    text = run(environment / "python", *words, "--print-config", cwd=tmp_path)
    assert "run_name: vit_s16" in text


def test_the_demo_of_an_installation_takes_its_first_steps(
    environment: Path, tmp_path: Path
) -> None:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with open(tmp_path / "said.txt", "w") as said:
        demo = subprocess.Popen(
            [environment / "poa-ds", "demo", "--out", "run"],
            cwd=tmp_path,
            env=variables,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    deadline, metrics = time.monotonic() + PATIENCE_SECONDS, tmp_path / "run" / "metrics.jsonl"
    try:
        while not metrics.exists() or "loss/total" not in metrics.read_text():
            assert demo.poll() is None, (tmp_path / "said.txt").read_text()
            assert time.monotonic() < deadline, (tmp_path / "said.txt").read_text()
            time.sleep(0.2)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=PATIENCE_SECONDS) == 130
    finally:
        demo.kill()
        demo.wait()
    assert "--config photos --deepspeed_config zero2" in (tmp_path / "said.txt").read_text()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_notebook_runs_from_top_to_bottom(
    name: str, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = tmp_path / "jupyter" / "kernels" / "newcomer" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    start = [str(environment / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": start, "display_name": "newcomer", "language": "python"}
    kernel.write_text(json.dumps(about | {"env": {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    book = nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)
    [place] = [
        n for n, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())
    ]
    settings = nbformat.v4.new_code_cell(SETTINGS[name])
    for key in re.findall(r"[A-Z_]{3,}", settings.source):
        assert re.search(rf"\b{key}\b", book.cells[place].source), key
    book.cells.insert(place + 1, settings)
    work = tmp_path / "work"
    work.mkdir()
    resources = {"metadata": {"path": str(work)}}
    NotebookClient(
        book, kernel_name="newcomer", timeout=PATIENCE_SECONDS, resources=resources
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    tables = [output for output in outputs if "text/html" in output.get("data", {})]
    assert len(pictures) >= 2 and len(tables) == 1
    assert "128x4" in tables[0].data["text/html"] or "96x4" in tables[0].data["text/html"]
    assert (work / name / "model" / "model.safetensors").is_file()

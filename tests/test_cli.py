"""The program as a user meets it: help, wrong use, mistakes, interruption."""

import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from poa_ds.cli import COMMANDS, Command, main
from poa_ds.system.errors import UsageError, UserError

ROOT = Path(__file__).parents[1]
RECIPE = "ds_configs/photos.yaml"


def program(*words: str | Path, module: str = "poa_ds.cli") -> subprocess.CompletedProcess[str]:
    """The result of the real program, run in the checkout."""
    command = [sys.executable, "-m", module, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def train(*overrides: str) -> subprocess.CompletedProcess[str]:
    return program("--config", RECIPE, *overrides, module="poa_ds.train")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module behind the command `fake`, without arguments; tests give it a `run`."""
    module = ModuleType("fake_command")
    module.add_arguments = lambda parser: None
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(COMMANDS, "fake", Command("fake_command", "for tests", "poa-ds fake"))
    return module


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str, capsys):
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert f"example:\n  poa-ds {name}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_accepted_by_its_own_parser(name: str, monkeypatch):
    command = COMMANDS[name]
    seen = []
    monkeypatch.setattr(
        importlib.import_module(command.module), command.run, lambda args: seen.append(args) or 0
    )
    assert main(command.example.split()[1:]) == 0
    assert len(seen) == 1


@pytest.mark.parametrize(
    "name",
    sorted(
        set(COMMANDS)
        - {"demo", "recipes", *(name for name in COMMANDS if name.startswith("bench "))},
    ),
)
def test_a_command_without_its_arguments_is_wrong_use(name: str, capsys):
    with pytest.raises(SystemExit) as end:
        main(name.split())
    assert end.value.code == 2
    assert f"usage: poa-ds {name}" in capsys.readouterr().err


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    errors = capsys.readouterr().err
    assert all(name in errors for name in COMMANDS)


def test_a_group_lists_its_own_commands(capsys):
    assert main(["shard", "--help"]) == 0
    text = capsys.readouterr().out
    assert "shard photos" in text
    assert "eval knn" not in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [("shrad photos", "shard photos"), ("eval kn", "eval knn"), ("size runs/x", "sizes")],
)
def test_an_unknown_command_is_answered_with_the_nearest(words: str, meant: str, capsys):
    assert main(words.split()) == 2
    assert f"did you mean `{meant}`?" in capsys.readouterr().err


def test_help_costs_no_library():
    code = (
        "import sys; from poa_ds.cli import main; main(['--help']);"
        "assert not {'torch', 'numpy', 'yaml'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(("error", "status"), [(UserError, 1), (UsageError, 2)])
def test_a_mistake_is_one_line_and_a_status(fake: ModuleType, error, status: int, capsys):
    def run(args: object) -> int:
        raise error("nowhere: no such folder")

    fake.run = run
    assert main(["fake"]) == status
    assert capsys.readouterr().err == "poa-ds: error: nowhere: no such folder\n"


def test_an_error_of_the_program_itself_is_not_hidden(fake: ModuleType):
    fake.run = lambda args: [][0]
    with pytest.raises(IndexError):
        main(["fake"])


@pytest.mark.parametrize("name", ["bench step", "bench data"])
def test_overrides_stand_before_and_behind_options(name: str, monkeypatch):
    module, seen = importlib.import_module(COMMANDS[name].module), []
    monkeypatch.setattr(module, "run", lambda args: seen.append(args.overrides) or 0)
    given = ["a=b", "--config", "x.yaml", "c=d", "--json", "y", "e=f"]
    assert main([*name.split(), *given]) == 0
    assert seen == [["a=b", "c=d", "e=f"]]


@pytest.mark.parametrize("name", ["check", "sizes", "eval knn", "extract"])
def test_a_missing_folder_is_named(name: str, capsys):
    words = ["--size", "small", "--out", "nowhere-else"] if name == "extract" else []
    assert main([*name.split(), "no-such-folder", *words]) in (1, 2)
    assert "no-such-folder" in "".join(capsys.readouterr())


def test_an_unknown_key_of_a_recipe_is_answered_with_the_nearest():
    done = train("schedule.epohcs=3")
    assert done.returncode == 2
    assert "schedule.epohcs" in done.stderr
    assert "schedule.epochs" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_value_of_the_wrong_type_is_named():
    done = train("batch.slots=two")
    assert done.returncode == 2
    assert "batch.slots" in done.stderr
    assert "two" in done.stderr
    assert "Traceback" not in done.stderr


def test_training_names_the_folder_that_is_missing(tmp_path: Path):
    done = train(f"output_dir={tmp_path / 'run'}", f"data.train={tmp_path / 'nowhere'}")
    assert done.returncode == 1
    assert str(tmp_path / "nowhere") in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_a_command_in_one_line(tmp_path: Path):
    pytest.importorskip("skimage", reason="the photographs are in scikit-image")
    out = tmp_path / "shards"
    words = ["shard", "photos", "--out", out, "--images-per-shard", "4"]
    child = subprocess.Popen(
        [sys.executable, "-m", "poa_ds.cli", *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(out.glob("train/*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    errors = child.communicate(timeout=60)[1]
    assert child.returncode == 130
    assert errors.endswith("poa-ds: interrupted\n")
    assert "Traceback" not in errors
    assert not (out / "train" / "dataset.json").exists()

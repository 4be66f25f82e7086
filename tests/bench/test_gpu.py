"""`poa-ds bench gpu`: nothing is measured twice or lost, and the report says what is missing."""

import argparse
import importlib
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from poa_ds import train
from poa_ds.bench.gpu import command, figures, parts, pictures, report, runner
from poa_ds.bench.gpu.calls import Call, Outcome, Part, Scene
from poa_ds.cli import COMMANDS
from poa_ds.cli import main as cli
from poa_ds.data.store.index import ShardFolder
from poa_ds.plan.constants import Constant
from poa_ds.recipe import ds_json, load
from poa_ds.system.errors import UserError

COUNTING = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(path.read_text() + "x" if path.exists() else "x")
sys.exit(int(sys.argv[2]))
"""
SLEEPING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    for name in ("parts", "records/kernels"):
        (tmp_path / name).mkdir(parents=True)
    return Scene(tmp_path, "cpu", smoke=True)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """Makes a module that `python -m` finds."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

    def made(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return made


def test_what_is_done_is_not_repeated_and_what_failed_is(scene: Scene, program):
    module = program("counting", COUNTING)
    good, bad = scene.out / "good", scene.out / "bad"

    def part(status: str) -> Part:
        calls = (
            Call("good", (module, str(good), "0"), lambda: {"runs": len(good.read_text())}),
            Call("bad", (module, str(bad), status)),
            Call("never", impossible="there is no such thing here"),
        )
        return Part("machine", "What is here", 1, calls)

    runner.run(scene, [part("3")], 60)
    found = scene.outcomes("machine")
    assert [o.status for o in found.values()] == ["done", "failed", "impossible"]
    assert found["good"].figures == {"runs": 1} and "status 3" in found["bad"].why
    runner.run(scene, [part("0")], 60)
    assert [o.status for o in scene.outcomes("machine").values()] == ["done", "done", "impossible"]
    assert (good.read_text(), bad.read_text()) == ("x", "xx")


def test_a_program_that_leaves_wrong_results_has_failed(scene: Scene, program):
    module = program("counting", COUNTING)

    def figures_of() -> dict:
        raise UserError("the loss is not finite")

    call = Call("a", (module, str(scene.out / "a"), "0"), figures_of)
    runner.run(scene, [Part("machine", "", 1, (call,))], 60)
    assert scene.outcomes("machine")["a"].why == "the loss is not finite"
    assert runner.again(scene.outcomes("machine")["a"])


TRAINING = """
import pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
path.write_text((path.read_text() if path.exists() else "") + "x")
while len(path.read_text()) < 2:
    time.sleep(0.05)
"""


def test_a_training_stops_before_its_limit_and_goes_on(scene: Scene, program, monkeypatch):
    path = scene.out / "steps"
    monkeypatch.setattr(runner, "_before", lambda limit: path.exists)  # it has begun
    words = (program("going_on", TRAINING), str(path))
    call = Call("t", words, lambda: {"steps": len(path.read_text())}, goes_on=True)
    part = Part("cifar", "", 1, (call,))
    runner.run(scene, [part], 60)
    found = scene.outcomes("cifar")["t"]
    assert (found.status, found.figures) == ("unfinished", {"steps": 1})
    runner.run(scene, [part], 60)
    assert scene.outcomes("cifar")["t"].status == "done"


@pytest.mark.parametrize(("seconds", "stopped"), [(600, 540), (40, 30)])
def test_a_training_is_asked_a_minute_before_its_limit_or_sooner(monkeypatch, seconds, stopped):
    now = [1000.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    before = runner._before(1000.0 + seconds)
    for passed, asked in ((stopped - 1, False), (stopped + 1, True)):
        now[0] = 1000.0 + passed
        assert before() == asked


def test_what_could_not_be_is_run_once_it_can(scene: Scene, program):
    path = scene.out / "runs_of_it"
    words = (program("counting", COUNTING), str(path), "0")
    for impossible in ("no archive", "", ""):
        call = Call("c", words, impossible=impossible)
        runner.run(scene, [Part("cifar", "", 1, (call,))], 60)
    assert scene.outcomes("cifar")["c"].status == "done" and path.read_text() == "x"


def test_a_report_has_no_places_of_this_machine(scene: Scene, program):
    cifar = scene.out.parent / "archive"
    scene = Scene(scene.out, "cpu", smoke=True, cifar=cifar)
    module = program("failing", "import sys\nsys.exit(sys.argv[1] + ' is bad')")
    call = Call("c", (module, str(scene.out / "x"), str(cifar)))
    runner.run(scene, [Part("machine", "", 1, (call,))], 60)
    found = scene.outcomes("machine")["c"]
    assert found.command == "python -m failing OUT/x CIFAR" and "OUT/x is bad" in found.why
    assert scene.shown(f"{scene.out}more") == f"{scene.out}more"


def test_at_its_limit_a_part_ends_with_all_its_processes(scene: Scene, program, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.5)
    pid = scene.out / "pid"
    calls = (Call("long", (program("sleeping", SLEEPING), str(pid))), Call("next", ("counting",)))
    runner.run(scene, [Part("machine", "", 1, calls)], 2.5)
    found = scene.outcomes("machine")
    assert [o.status for o in found.values()] == ["timed out", "timed out"]
    assert "no time" in found["next"].why
    assert not pid.exists() or not alive(int(pid.read_text()))  # slow: it had not begun


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("smoke", [False, True])
@pytest.mark.parametrize("packages", [(), ("no_such_package",)])
def test_every_command_of_every_part_is_one_that_its_program_takes(
    tmp_path: Path, device: str, smoke: bool, packages: tuple, monkeypatch: pytest.MonkeyPatch
):
    """Recipes, overrides and DeepSpeed files too, which a GPU is not needed for."""
    monkeypatch.setattr(parts, "PHOTOGRAPHS", packages)
    found = parts.parts(Scene(tmp_path, device, smoke, cifar=tmp_path))
    for call in (call for part in found for call in part.calls):
        for path, text in call.files.items():
            path.write_text(text)
        if call.words[0] == parts.CLI:
            name = " ".join(call.words[1:3])
            parser = argparse.ArgumentParser(allow_abbrev=False)
            getattr(importlib.import_module(COMMANDS[name].module), COMMANDS[name].arguments)(
                parser
            )
            args = parser.parse_intermixed_args(call.words[3:])
            if hasattr(args, "config"):
                load.recipe(args.config, args.overrides)
        elif call.words[0] == "poa_ds.train":
            args = train.parser().parse_intermixed_args(call.words[1:])
            recipe = load.recipe(args.config, args.overrides)
            ds_json.resolved(recipe, ds_json.read(args.deepspeed_config), 1)
        else:
            assert importlib.util.find_spec(call.words[0])


def test_without_the_packages_of_the_photographs_there_are_drawn_pictures(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parts, "PHOTOGRAPHS", ("no_such_package",))
    runner.run(scene, [Part("train", "", 1, tuple(parts._shards(scene)))], 300)
    assert {o.status for o in scene.outcomes("train").values()} == {"done"}
    for split, count in pictures.IMAGES.items():
        folder = ShardFolder.open(scene.shards / split)
        assert len(folder) == count * len(pictures.LENGTHS) * pictures.DIRECTIONS


def test_parts_share_the_budget_and_leave_what_they_do_not_need(scene: Scene, capsys):
    none = Call("none", impossible="no")
    shares = [Part("machine", "a", 1, (none,)), Part("train", "b", 3, (none,))]
    runner.run(scene, shares, 400)
    lines = [line for line in capsys.readouterr().out.splitlines() if "programs" in line]
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["100 s", "400 s"]


def test_verdicts_hold_the_figures_against_the_targets(tmp_path: Path):
    scene = Scene(tmp_path, "cuda", smoke=False)
    (tmp_path / "parts").mkdir()
    found = {"time of three passes / ours": 1.7, "ours: peak GiB": 30.0}
    published = Outcome("done", figures=found | {"three passes: peak GiB": 40.0})
    compiled = Outcome("failed", why="status 1")
    scene.keep("step", {parts.PUBLISHED_CALL: published, parts.COMPILED_CALL: compiled})
    every, found = parts.parts(scene), {"efficiency": Constant(0.41, "of the peak", "measured")}
    text = report.text(scene, every, "poa-ds bench gpu", {"processor": "H100"}, ("h100", found))
    assert "`--gpu h100 --measured plan.json`" in text
    assert "| efficiency | 0.41 of the peak | measured |" in text
    rows = [line for line in text.splitlines() if "at least" in line or "at most" in line]
    assert [row.split(" | ")[1] for row in rows] == [
        "met: 1.70 |",
        "not judged: status 1 |",
        "MISSED: 0.75 |",
        "not judged: it needs the parts machine and step |",
    ]
    assert "Not begun." in text and "Not run on a GPU" not in text


@pytest.mark.parametrize(("seconds", "verdict"), [(0.19, "met: 79 %"), (0.22, "MISSED: 68 %")])
def test_the_share_of_the_counted_floor_is_judged(tmp_path: Path, seconds: float, verdict: str):
    scene = Scene(tmp_path, "cuda", smoke=False)
    (tmp_path / "records").mkdir()
    rates = {figures.PRODUCT: 800.0, figures.COPY: 4.0}
    scene.record("machine").write_text(json.dumps(rates))
    # products of 20, 100 and 200 ms, 50 ms of the update; the second step is the median
    floors = [{"flops": flops, "bytes": 0.2e12} for flops in (16e12, 80e12, 160e12)]
    steps = [{"seconds": value} for value in (0.07, seconds, 1.0)]
    record = {"floors": floors, "results": {"ours": {"steps": steps}}}
    parts.step_record(scene, parts.VIT, parts.PUBLISHED).write_text(json.dumps(record))
    assert report._floor(scene) == f"{verdict} (the floor is 150.0 ms)"


def test_the_full_run_wants_a_gpu_and_a_folder_has_one_machine(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_identity", lambda: {"device": "cpu", "torch": "1"})
    assert cli(["bench", "gpu", "--out", str(tmp_path)]) == 2
    assert "--smoke" in capsys.readouterr().err
    (tmp_path / "settings.json").write_text('{"device": "cuda", "torch": "1", "smoke": "True"}')
    assert cli(["bench", "gpu", "--smoke", "--out", str(tmp_path)]) == 2
    assert "device cuda, here it is cpu: name another folder" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_budgets_have_a_unit(text: str, seconds: float):
    assert command.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0m", "-1m", "30 m", "m"])
def test_a_budget_that_is_none_is_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="90s, 30m or 2h"):
        command.duration(text)


def a_cifar(folder: Path) -> None:
    """The published batches with 300 images of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (50, 3072), dtype=np.uint8)
        batch = {"data": pixels, "labels": [n % 10 for n in range(50)]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = pickle.dumps({"label_names": [f"c{n}" for n in range(10)]}, protocol=2)
    (folder / "batches.meta").write_bytes(names)


@pytest.mark.slow
def test_interrupted_in_the_middle_the_same_command_continues(tmp_path: Path):
    """Trained, stopped, continued, and two more parts, as a smoke run on whatever is here."""
    out = tmp_path / "o"
    words = [sys.executable, "-m", "poa_ds.cli", "bench", "gpu", "--smoke", "--out", str(out)]
    words += ["--only", "machine", "train", "cifar", "--cifar", str(tmp_path / "source")]
    a_cifar(tmp_path / "source" / "cifar-10-batches-py")
    first = subprocess.Popen(words, start_new_session=True)
    while not (out / "runs" / "zero1" / "metrics.jsonl").exists():  # in the middle of a training
        assert first.poll() is None
        time.sleep(0.1)
    group = psutil.Process(first.pid).children(recursive=True)
    first.send_signal(signal.SIGINT)
    assert first.wait() == 130
    assert group
    end = time.monotonic() + 60  # Python's own tracker of resources ends a moment later
    while any(alive(process.pid) for process in group):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert "Not begun." in Scene(out, "cpu", smoke=True).report.read_text()
    before = (out / "records" / "machine.json").stat().st_mtime_ns
    assert subprocess.run(words).returncode == 0
    assert (out / "records" / "machine.json").stat().st_mtime_ns == before
    text = Scene(out, "cpu", smoke=True).report.read_text()
    for expected in ("continued after step", "step 2: knn_top1", "step 4: knn_top1"):
        assert expected in text
    assert str(tmp_path) not in text and sys.prefix not in text
    assert "failed" not in text and "timed out" not in text
    found = figures.of_continuing(out / "runs" / "zero2")
    assert 0 < found["continued after step"] < found["steps"]

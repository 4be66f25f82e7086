"""`poa-ds launch` and plain `deepspeed`: signals, kills, restarts; no process is ever left."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from poa_ds.run import exit_status
from poa_ds.system.processes import Group
from tests.distributed.programs.jobs import PATIENCE_SECONDS, Job, arguments
from tests.distributed.programs.launch import ROOT, free_port
from tests.run.test_training import environment, losses
from tests.support.shards import make_shards

SHORT = ("schedule.steps_per_epoch=8", "checkpoint.every_epochs=0.25", "evaluation.queries=")
SHORT += ("checkpoint.background=false",)  # complete before the step after it


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    make_shards(root / "val", 21)
    return root


def launched(options: list[str], shards: Path, out: Path, *more: str) -> Job:
    """`poa-ds launch` at work."""
    command = [sys.executable, "-u", "-m", "poa_ds.cli", "launch", *options, "--"]
    return Job([[*command, *arguments(shards, out, *more)]], [environment()], out)


def deepspeed(shards: Path, out: Path, *more: str) -> Job:
    """The launcher without a supervisor."""
    program = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
    place = ["--master_port", str(free_port()), "--module", "poa_ds.train"]
    return Job([[*program, *place, *arguments(shards, out, *more)]], [environment()], out)


def living(out: Path) -> list[psutil.Process]:
    """Processes that name this run's folder on their command line."""
    found = psutil.process_iter(["cmdline", "status"])
    return [
        process
        for process in found
        if f"output_dir={out}" in (process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def trainers(out: Path) -> list[psutil.Process]:
    """The ranks: the training program, without launchers above and loaders below it."""
    named = [p for p in living(out) if "poa_ds.train" in p.info["cmdline"][:4]]
    pids = {process.pid for process in named}
    return [process for process in named if process.ppid() not in pids]


def assert_nothing_is_left(out: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while left := living(out):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


def saved_step(out: Path) -> int:
    return int((out / "checkpoints" / "latest").read_text().strip().removeprefix("step"))


def test_a_group_ends_with_all_its_processes_and_a_status_as_shells_report_it() -> None:
    group = Group(["sh", "-c", "sleep 600 & exit 247"], environment())
    while group.status() is None:
        time.sleep(0.05)
    assert group.status() == 128 + signal.SIGKILL  # as deepspeed hands on a killed rank
    assert not group.wait(0.3)
    group.signal(signal.SIGTERM)
    assert group.wait(PATIENCE_SECONDS)
    killed = Group(["sleep", "600"], environment())
    killed.signal(signal.SIGKILL)
    assert killed.status() == 128 + signal.SIGKILL and killed.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("options", "words", "status", "message"),
    [
        (["--nproc", "1", "--max-restarts", "2"], ["data.train=nowhere"], 1, "nowhere"),
        (["--nproc", "0"], [], 2, "--nproc: '0' is not a number"),
        (["--hostfile", "no-hosts"], [], 2, "no-hosts"),
        (["--nproc", "1"], ["schedule.epohcs=3"], 2, "schedule.epochs"),
    ],
)
def test_mistakes_are_not_tried_again(
    options: list[str], words: list[str], status: int, message: str, tmp_path: Path
) -> None:
    with launched(options, tmp_path, tmp_path / "run", *words) as job:
        assert job.statuses() == [status]
        assert message in job.said() and "Traceback" not in job.said()
        assert "restart" not in job.said() and job.said().count("error:") == 1


@pytest.mark.slow
def test_garbage_in_the_folder_of_a_run_does_not_end_the_supervisor(tmp_path: Path) -> None:
    """What it reads there is the record of the end and the newest checkpoint."""
    out = tmp_path / "run"
    (out / "checkpoints" / "step00000004").mkdir(parents=True)
    for name in ("ended.json", "checkpoints/latest", "checkpoints/step00000004/manifest.json"):
        (out / name).write_bytes(b"\xff\xfe{")
    options = ["--nproc", "1", "--max-restarts", "2"]
    with launched(options, tmp_path, out, "data.train=nowhere") as job:
        assert job.statuses() == [1]
        assert "nowhere" in job.said() and "Traceback" not in job.said()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGUSR1, exit_status.STOPPED), (signal.SIGINT, exit_status.INTERRUPTED)],
)
def test_a_signal_stops_all_ranks_saved_and_leaves_nothing(
    number: int, status: int, shards: Path, tmp_path: Path
) -> None:
    options = ["--nproc", "2", "--max-restarts", "3"]
    with launched(options, shards, tmp_path, "evaluation.queries=") as job:
        job.until("step 2:")
        job.signal(number, 0)
        assert job.statuses() == [status], job.said()
        assert not living(tmp_path)
        assert exit_status.read(tmp_path).status == exit_status.STOPPED
        assert exit_status.read(tmp_path).step == saved_step(tmp_path) == max(losses(tmp_path))
        assert "; restart" not in job.said() and "restarts 0," in job.said()


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_ends_as_an_undisturbed_one(
    shards: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "killed"
    with launched(["--nproc", "2"], shards, whole, *SHORT) as job:
        assert job.statuses() == [0], job.said()
    with launched(["--nproc", "2", "--max-restarts", "1"], shards, out, *SHORT) as job:
        job.until("step 3:")
        trainers(out)[1].kill()
        assert job.statuses() == [0], job.said()
        assert "status 137 (SIGKILL); restart 1 of 1 in 5 s, from step00000" in job.said()
    assert exit_status.read(out) == exit_status.Ended(exit_status.DONE, 8)
    assert losses(out) == losses(whole)
    assert not living(out)


@pytest.mark.slow
def test_without_a_newer_checkpoint_a_second_fault_is_the_last(
    shards: Path, tmp_path: Path
) -> None:
    more = ("evaluation.queries=",)
    with launched(["--nproc", "1", "--max-restarts", "9"], shards, tmp_path, *more) as job:
        job.until("step 2:")
        trainers(tmp_path)[0].kill()
        job.until("restart 1 of 9")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not trainers(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        trainers(tmp_path)[0].kill()
        assert job.statuses() == [128 + signal.SIGKILL]
        assert "not restarted: again with no checkpoint" in job.said()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_whose_deepspeed_is_gone_save_and_end(
    number: int, shards: Path, tmp_path: Path
) -> None:
    """Its second process, which started them, lives on: they look one level higher."""
    with deepspeed(shards, tmp_path, "evaluation.queries=") as job:
        job.until("step 2:")
        job.signal(number, 0)
        assert job.statuses() == [-number]
        assert_nothing_is_left(tmp_path)
        record = exit_status.read(tmp_path)
        assert record.reason == "the end of its launcher"
        assert record.step == saved_step(tmp_path) == max(losses(tmp_path))


@pytest.mark.slow
def test_ranks_that_start_while_deepspeed_is_killed_end_before_the_first_step(
    shards: Path, tmp_path: Path
) -> None:
    """As a job of its own, as shells start it."""
    place = ["--num_gpus", "2", "--master_port", str(free_port()), "--module", "poa_ds.train"]
    program = ["setsid", str(Path(sys.executable).with_name("deepspeed")), *place]
    words = arguments(shards, tmp_path, "evaluation.queries=")
    with Job([[*program, *words]], [environment()], tmp_path) as job:
        job.until("launcher.launch")
        job.signal(signal.SIGKILL, 0)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (record := exit_status.read(tmp_path)):
            assert time.monotonic() < deadline and living(tmp_path), job.said()
            time.sleep(0.2)
        assert record == exit_status.Ended(exit_status.STOPPED, 0, "the end of its launcher")
        assert_nothing_is_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("supervised", [True, False])
def test_a_terminal_that_closes_stops_the_run_saved(
    supervised: bool, shards: Path, tmp_path: Path
) -> None:
    words = arguments(shards, tmp_path, "evaluation.queries=", "schedule.steps_per_epoch=100")
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2"]
    command += ["--master_port", str(free_port()), "--module", "poa_ds.train", *words]
    if supervised:
        command = [sys.executable, "-m", "poa_ds.cli", "launch", "--nproc", "2", "--", *words]
    try:
        screen, terminal = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminals here: {error}")
    termios.tcsetwinsize(terminal, (24, 100))
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    settings = environment() | {"TERM": "xterm"}
    first = subprocess.Popen(["setsid", "--ctty", *command], env=settings, cwd=ROOT, **ends)
    os.close(terminal)
    said = b""
    while not re.search(rb"[2-9]/100 ", said):  # the lines at its foot
        said += os.read(screen, 4096)
    os.close(screen)
    first.wait(timeout=PATIENCE_SECONDS)
    assert_nothing_is_left(tmp_path)
    record = exit_status.read(tmp_path)
    assert record and record.status == exit_status.STOPPED, record
    assert record.step == saved_step(tmp_path) == max(losses(tmp_path))


@pytest.mark.slow
def test_deepspeeds_second_process_signals_the_ranks_one_after_the_other(
    shards: Path, tmp_path: Path
) -> None:
    """It waits up to 30 seconds for the first rank, which cannot stop without the second."""
    with deepspeed(shards, tmp_path, "evaluation.queries=") as job:
        job.until("step 2:")
        trainers(tmp_path)[0].parent().terminate()
        asked = time.monotonic()
        assert job.statuses() == [1]
        assert time.monotonic() - asked < 30
        assert_nothing_is_left(tmp_path)
        assert exit_status.read(tmp_path) == exit_status.Ended(
            exit_status.STOPPED, saved_step(tmp_path), "SIGTERM"
        )


@pytest.mark.slow
def test_under_torchrun_a_signal_saves_as_well(shards: Path, tmp_path: Path) -> None:
    program = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2"]
    place = ["--master_port", str(free_port()), "-m", "poa_ds.train"]
    words = arguments(shards, tmp_path, "evaluation.queries=")
    with Job([[*program, *place, *words]], [environment()], tmp_path) as job:
        job.until("step 2:")
        job.signal(signal.SIGTERM, 0)
        assert job.statuses() == [1]  # whatever the ranks return
        assert_nothing_is_left(tmp_path)
        assert exit_status.read(tmp_path) == exit_status.Ended(
            exit_status.STOPPED, saved_step(tmp_path), "SIGTERM"
        )


@pytest.mark.slow
def test_ranks_whose_supervisor_is_killed_save_and_end(shards: Path, tmp_path: Path) -> None:
    with launched(["--nproc", "2"], shards, tmp_path, "evaluation.queries=") as job:
        job.until("step 2:")
        job.signal(signal.SIGKILL, 0)
        assert job.statuses() == [-signal.SIGKILL]
        assert_nothing_is_left(tmp_path)
        assert exit_status.read(tmp_path).reason == "the end of its launcher"


@pytest.mark.slow
def test_the_second_signal_kills(shards: Path, tmp_path: Path) -> None:
    long_steps = ("evaluation.queries=", "batch.images_per_slot=30")
    with launched(["--nproc", "2"], shards, tmp_path, *long_steps) as job:
        job.until("step 1:")
        for number in (signal.SIGUSR1, signal.SIGTERM):  # within that step
            job.signal(number, 0)
        assert job.statuses() == [128 + signal.SIGTERM]
        assert_nothing_is_left(tmp_path)
        assert exit_status.read(tmp_path) is None


@pytest.mark.slow
def test_a_dry_run_leaves_no_record(shards: Path, tmp_path: Path) -> None:
    words = arguments(shards, tmp_path / "never", "--dry-run")
    command = [sys.executable, "-m", "poa_ds.cli", "launch", "--nproc", "1", "--", *words]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the second step took" in done.stdout and not (tmp_path / "never").exists()

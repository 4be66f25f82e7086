"""Training over two hosts: what one host computes, whichever launcher, and one that is cut off."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL

import pytest

from poa_ds.run import exit_status
from tests.distributed.programs.hosts import Host, missing, two_hosts
from tests.distributed.programs.launch import ROOT
from tests.run.test_training import TINY, environment, losses
from tests.support.shards import make_shards

pytestmark = pytest.mark.slow
PROGRAMS = Path(sys.executable).parent
STEPS = 24
TIMEOUT_SECONDS = 20  # of a step; longer than any step on a loaded machine
ROLL_CALL_SECONDS = 5
SILENCE_SECONDS = 15  # after which ssh gives a host up
# without it the launcher waits for ever for a host that is cut off
KEEP_ALIVE = {"PDSH_SSH_ARGS_APPEND": "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"}
# what the ranks need and the launcher does not carry
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hosts")
    make_shards(root / "shards", 60)
    return root


@pytest.fixture(scope="module")
def hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    if reason := missing():
        (pytest.fail if os.environ.get("POA_HOSTS") == "required" else pytest.skip)(reason)
    settings = "".join(f"{name}={value}\n" for name, value in ENVIRONMENT.items())
    (folder / ".deepspeed_env").write_text(settings)
    with two_hosts(folder) as hosts:
        yield hosts


def words(folder: Path, out: str) -> list[str]:
    recipe = ["--config", "ds_configs/photos.yaml", "--deepspeed_config", "ds_configs/zero2.json"]
    recipe += [*TINY, f"schedule.steps_per_epoch={STEPS}", "evaluation.queries="]
    return [*recipe, f"data.train={folder}/shards", f"output_dir={folder}/{out}"]


def at_home(folder: Path, **changed: str) -> dict[str, str]:
    """The environment of a user whose home is `folder`, where .deepspeed_env is."""
    kept = {k: v for k, v in environment().items() if k not in ENVIRONMENT}
    return kept | {"HOME": str(folder)} | changed


@pytest.fixture(scope="module")
def one_host(folder: Path) -> dict[int, dict[str, float]]:
    """The losses of two processes on one host."""
    start = [str(PROGRAMS / "torchrun"), "--standalone", "--nproc_per_node", "2"]
    command = [*start, "-m", "poa_ds.train", *words(folder, "one")]
    subprocess.run(command, env=environment(), cwd=ROOT, check=True, timeout=600)
    found = losses(folder / "one")
    assert sorted(found) == list(range(1, STEPS + 1))
    return found


def over_ssh(folder: Path, out: str) -> list[str]:
    start = [str(PROGRAMS / "deepspeed"), "--hostfile", f"{folder}/HOSTS"]
    start += ["--master_addr", "node1", "--module", "poa_ds.train"]
    return [*start, *words(folder, out)]


def test_two_hosts_over_ssh_compute_what_one_host_does(
    folder: Path, hosts: tuple[Host, Host], one_host: dict[int, dict[str, float]]
) -> None:
    done = subprocess.run(
        hosts[0].command(*over_ssh(folder, "ssh")),
        env=at_home(folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"node1: done: {STEPS} steps" in done.stdout
    assert "the environment is not the same" not in done.stderr
    assert losses(folder / "ssh") == one_host


def test_without_ssh_each_host_starts_its_own_part(
    folder: Path, hosts: tuple[Host, Host], one_host: dict[int, dict[str, float]]
) -> None:
    """With a variable that is set on one host only, which is said."""
    ranks = []
    for number, host in enumerate(hosts):
        command = over_ssh(folder, "apart")
        command[1:1] = ["--no_ssh", "--node_rank", str(number)]
        own = at_home(folder, **ENVIRONMENT, **({"NCCL_DEBUG": "WARN"} if number else {}))
        ranks.append(
            subprocess.Popen(
                host.command(*command), env=own, cwd=ROOT, stderr=subprocess.PIPE, text=True
            )
        )
    said = [rank.communicate(timeout=600)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    assert "NCCL_DEBUG: not set on rank 0, WARN on rank 1" in said[0]
    assert losses(folder / "apart") == one_host


def test_a_host_that_is_cut_off_ends_the_run_which_goes_on_later(
    folder: Path, hosts: tuple[Host, Host], one_host: dict[int, dict[str, float]]
) -> None:
    # a checkpoint is complete before the step after it
    words = ("checkpoint.background=false", f"step_timeout_seconds={TIMEOUT_SECONDS}")
    command = hosts[0].command(*over_ssh(folder, "cut"), *words)
    settings = {"env": at_home(folder, **KEEP_ALIVE), "cwd": ROOT, "text": True}
    settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **settings) as run:
        for line in run.stdout:
            if "step 7:" in line:  # the next checkpoint is at 12
                break
        hosts[1].cut_off()
        began = time.monotonic()
        said = run.communicate(timeout=600)[0]
        took = time.monotonic() - began
    hosts[1].bring_back()
    assert run.returncode != 0
    assert re.search(r"node1: .*rank 0 on node1 gives up: no progress for \d+ s", said), said
    assert "no answer from rank 1: stopped processes, a host that is cut off" in said
    # and some seconds for processes to end
    assert took < TIMEOUT_SECONDS + ROLL_CALL_SECONDS + SILENCE_SECONDS + 20
    for host in hosts:
        assert not trains(host)
    done = subprocess.run(command, timeout=600, **settings)
    assert done.returncode == 0 and "continues at step 6 " in done.stdout, done.stdout
    assert losses(folder / "cut") == one_host


def test_a_supervisor_that_is_asked_or_killed_stops_and_saves_on_both_hosts(
    folder: Path, hosts: tuple[Host, Host], one_host: dict[int, dict[str, float]]
) -> None:
    start = [sys.executable, "-u", "-m", "poa_ds.cli", "launch", "--hostfile", f"{folder}/HOSTS"]
    start += ["--options", "--master_addr node1", "--", *words(folder, "launched")]
    settings = {"env": at_home(folder), "cwd": ROOT, "text": True}
    settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    for signal, status in (("-TERM", exit_status.STOPPED), ("-KILL", -SIGKILL)):
        with subprocess.Popen(hosts[0].command(*start), **settings) as run:
            for line in run.stdout:
                if re.search(r": step \d+:", line):
                    break
            own = hosts[0].command("pkill", signal, "-f", "poa_ds.cli launch")  # of that host only
            subprocess.run(own, check=True)
            said = run.communicate(timeout=600)[0]
        assert run.returncode == status, said
        for host in hosts:
            assert not trains(host)
        record = exit_status.read(folder / "launched")
        # whatever reaches a rank first: the launcher's signal, or the end of its connection
        assert record.reason in ("SIGTERM", "the end of its launcher")
        assert record.step < STEPS
    done = subprocess.run(hosts[0].command(*start), timeout=600, **settings)
    assert done.returncode == 0, done.stdout
    assert losses(folder / "launched") == one_host


def trains(host: Host) -> bool:
    """Whether a rank is left on this host, once the one that was cut off has had its time."""
    look = host.command("bash", "-c", "cat /proc/[0-9]*/cmdline")
    deadline = time.monotonic() + TIMEOUT_SECONDS + ROLL_CALL_SECONDS
    while b"poa_ds.train" in subprocess.run(look, capture_output=True).stdout:
        if time.monotonic() > deadline:
            return True
        time.sleep(0.5)
    return False

"""The image and the Slurm script: what they name is there; the script runs under a fake srun."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from poa_ds.commands import COMMANDS
from poa_ds.run import exit_status
from tests.run.test_training import environment
from tests.test_dependencies import ROOT

FOLDER = ROOT / "containers"
KNOWN = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """(word, what follows it) of each instruction, lines that go on joined."""
    lines = [
        line
        for line in (FOLDER / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_every_instruction_of_the_image_is_one_and_its_shell_parses() -> None:
    assert {name for name, _ in instructions()} <= KNOWN
    assert [name for name, _ in instructions()][:2] == ["ARG", "FROM"]
    for script in of("RUN"):
        done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
        assert done.returncode == 0, (script, done.stderr)
    declared = {argument.partition("=")[0] for argument in of("ARG")}
    used = set(re.findall(r"\$\{?([A-Z]+)", " ".join(of("RUN") + of("FROM"))))
    assert used == declared
    # versions are pinned wherever something is installed, and the index's lists do not stay
    installs = [script for script in of("RUN") if "pip install" in script]
    assert len(installs) == 2 and all("-c constraints.txt" in script for script in installs)
    assert all("rm -rf /var/lib/apt/lists" in s for s in of("RUN") if "apt-get install" in s)
    assert of("USER") == ["poa"]


def test_the_image_has_what_an_installation_needs_and_docker_sees_it() -> None:
    copied = [word for line in of("COPY") for word in shlex.split(line)[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    setup = (ROOT / "setup.py").read_text()
    needed = {"setup.py", "pyproject.toml", "LICENSE", "constraints.txt", "poa_ds", "data_tools"}
    needed |= set(re.findall(r'with_name\("([\w.]+)"\)', setup))
    needed |= set(re.findall(r': "(\w+)(?:/\w+)?",', setup)) & {"kernels", "ds_configs"}
    assert needed <= set(copied) and {"kernels", "ds_configs", "README.md"} <= needed
    # Docker reads this file beside the Dockerfile: everything is left out but what it lists
    seen = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in seen if line.startswith("!")} == set(copied)
    extras = re.findall(r"'\.\[([\w,]+)\]'", " ".join(of("RUN")))[0].split(",")
    assert set(extras) <= set(re.findall(r'^        "(\w+)": \[', setup, re.MULTILINE))
    assert json.loads(of("CMD")[0])[0] == "poa-ds" and COMMANDS


@pytest.mark.parametrize("wrong", ["gpu", ""])
def test_another_device_is_refused(wrong: str) -> None:
    [script] = [script for script in of("RUN") if "DEVICE" in script]
    done = subprocess.run(
        ["bash", "-c", script.replace("pip install", "echo pip install")],
        env={"DEVICE": wrong, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "DEVICE is cpu or cuda" in done.stderr


def cluster(folder: Path, srun: str) -> dict[str, str]:
    """The environment of a job whose srun does that; scontrol writes down what it was told."""
    programs = {"srun": srun, "scontrol": f'echo "$@" > {shlex.quote(str(folder / "told"))}'}
    for name, script in programs.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return environment() | {"PATH": path, "SLURM_JOB_ID": "77", "PYTHON": sys.executable}


def sbatch(
    variables: dict[str, str], *words: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(FOLDER / "train.sbatch"), *words],
        env=variables,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.parametrize(
    ("status", "faults", "again"),
    [
        (0, 0, False),
        (exit_status.STOPPED, 50, True),
        (70, 2, True),
        (70, 3, False),
        (124, 0, True),
        (139, 0, True),
        (2, 0, False),
        (exit_status.INTERRUPTED, 0, False),
    ],
)
def test_the_script_queues_again_what_can_go_on(
    status: int, faults: int, again: bool, tmp_path: Path
) -> None:
    counted = tmp_path / "slurm-77.faults"
    counted.write_text(f"{faults}\n")
    done = sbatch(cluster(tmp_path, f"exit {status}"), "output_dir=x", cwd=tmp_path)
    assert int(counted.read_text()) == faults + (again and status != exit_status.STOPPED)
    assert done.returncode == (0 if again else status), done.stderr
    assert (tmp_path / "told").exists() is again
    if again:
        assert (tmp_path / "told").read_text() == "requeue 77\n"


def test_the_script_starts_tasks_that_find_each_other(tmp_path: Path) -> None:
    """srun starts two tasks; each says what the training would be and what it joins.

    That tasks with these variables train alike is in tests/distributed/test_launchers.py.
    """
    srun = """while [[ $1 == --* ]]; do shift; done
for task in 0 1; do
    SLURM_PROCID=$task SLURM_NTASKS=2 SLURM_LOCALID=$task SLURM_STEP_NODELIST=node[3-4] "$@" || exit
done"""
    told = tmp_path / "tasks"
    program = (
        "import json, os, sys; from poa_ds.system.rendezvous import complete_environment; "
        "found = [sys.argv[1:], complete_environment(os.environ)]; "
        f"print(json.dumps(found), file=open({str(told)!r}, 'a'))"
    )
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c {shlex.quote(program)} "$@"\n')
    python.chmod(0o755)
    variables = cluster(tmp_path, srun) | {"PYTHON": str(python), "MASTER_PORT": "29511"}
    variables = {key: value for key, value in variables.items() if key != "MASTER_ADDR"}
    done = sbatch(variables, "--config", "vit_s16_in1k", "output_dir=a run")
    assert done.returncode == 0, done.stderr
    tasks = [json.loads(line) for line in told.read_text().splitlines()]
    training = ["-m", "poa_ds.train", "--config", "vit_s16_in1k", "output_dir=a run"]
    assert [words for words, _ in tasks] == [training, training]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "node3", "MASTER_PORT": "29511"}
    assert [joined for _, joined in tasks] == [
        shared | {"RANK": str(task), "LOCAL_RANK": str(task)} for task in range(2)
    ]

"""What a process notes about its launcher; how whole ranks obey: distributed/test_stopping.py."""

import os
import subprocess
import sys
import time
from typing import TextIO

from tests.distributed.programs.launch import ROOT

PRINTS = """
import sys, time
from poa_ds.system.stopping import Requests
requests = Requests()
requests.install()
while not requests.wanted:
    print("step", flush=True)
    time.sleep(0.02)
    requests.look()
print("saved", file=sys.stderr)
print(requests.wanted, file=sys.stderr)
"""


def printing(output: int | TextIO = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CROSS_RANK", "TORCHELASTIC_RUN_ID")}
    pipes = {"stdout": output, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PRINTS]
    return subprocess.Popen(command, cwd=ROOT, env=kept | variables, **pipes)


def said_without_a_reader(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout.readline() == "step\n"
    process.stdout.close()
    with process.stderr as errors:
        return process.wait(timeout=60), errors.read()


def test_a_rank_whose_output_nobody_reads_any_more_wants_to_stop_and_lives() -> None:
    status, said = said_without_a_reader(printing(CROSS_RANK="0"))
    assert (status, said) == (0, "saved\nthe end of its launcher\n")


def test_a_program_that_nothing_launched_wants_to_stop_as_well() -> None:
    status, said = said_without_a_reader(printing())
    assert (status, said) == (0, "saved\nthe end of the reader of its output\n")


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    with open("/dev/full", "w") as full:
        process = printing(full)
        time.sleep(1)
        process.terminate()
        assert process.communicate(timeout=60)[1] == "saved\nSIGTERM\n"
    assert process.returncode == 0


def test_a_signal_is_a_request_whoever_started_the_process() -> None:
    process = printing()
    assert process.stdout.readline() == "step\n"
    process.terminate()
    time.sleep(0.1)
    process.terminate()  # a launcher's repetition
    assert process.communicate(timeout=60)[1] == "saved\nSIGTERM\n"
    assert process.returncode == 0

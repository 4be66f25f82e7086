"""What the launchers' environments amount to, and a port that is taken."""

import socket
import subprocess
import sys
import time

import pytest

from poa_ds.system.errors import UserError
from poa_ds.system.rendezvous import check_port, complete_environment
from tests.distributed.programs.launch import ROOT, environment


def test_a_plain_python_is_one_process() -> None:
    found = complete_environment({})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("0", "1", "127.0.0.1")


def test_torchrun_variables_are_taken_as_they_are() -> None:
    given = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "h0",
        "MASTER_PORT": "7",
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": "9",
    }
    assert complete_environment(given) == {k: v for k, v in given.items() if "SLURM" not in k}


def test_srun_variables_are_translated() -> None:
    found = complete_environment(
        {
            "SLURM_PROCID": "5",
            "SLURM_NTASKS": "8",
            "SLURM_LOCALID": "1",
            "SLURM_STEP_NODELIST": "node[03-05,9]",
        }
    )
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("5", "8", "1")
    assert found["MASTER_ADDR"] == "node03"


@pytest.fixture
def taken() -> socket.socket:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port_of(server: socket.socket) -> int:
    return server.getsockname()[1]


def test_a_taken_port_is_named_with_the_remedy_before_torch_is_loaded(
    taken: socket.socket,
) -> None:
    port = port_of(taken)
    words = ["--config", "ds_configs/photos.yaml", "output_dir=runs/none"]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "poa_ds.train", *words],
        env=environment(0, 2, port),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert f"error: port {port} of this machine" in done.stderr and "--master_port" in done.stderr
    assert "Traceback" not in done.stderr and "| torch\n" not in done.stderr


def test_only_who_opens_the_port_needs_it(taken: socket.socket) -> None:
    port = str(port_of(taken))
    own = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port}
    with pytest.raises(UserError, match=port):
        check_port(own)
    check_port(own | {"RANK": "1"})
    check_port(own | {"WORLD_SIZE": "1"})
    check_port(own | {"TORCHELASTIC_USE_AGENT_STORE": "True"})


def test_a_port_whose_last_run_has_just_ended_is_free(taken: socket.socket) -> None:
    """Its connections linger in TIME_WAIT for a minute."""
    port = port_of(taken)
    with socket.create_connection(("127.0.0.1", port)) as client:
        accepted, _ = taken.accept()
        accepted.close()  # the side that closes first lingers
        time.sleep(0.1)
        client.close()
    taken.close()
    check_port({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(port)})


@pytest.mark.parametrize("port", ["", "none", "-1", "70000"])
def test_a_port_that_is_none_is_named(port: str) -> None:
    with pytest.raises(UserError, match="MASTER_PORT"):
        check_port({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port})

"""What the launchers' environments amount to; the reductions run under tests/distributed."""

from poa_ds.system.dist import complete_environment


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

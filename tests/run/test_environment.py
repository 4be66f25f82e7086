"""Which variables differ between ranks, and how that is said."""

from pathlib import Path

from poa_ds.run.environment import differences, of_interest

EXAMPLE = Path(__file__).parents[2] / "ds_configs" / "deepspeed_env.example"


def test_only_what_changes_a_run_is_looked_at() -> None:
    environment = {
        "OMP_NUM_THREADS": "1",
        "NCCL_SOCKET_IFNAME": "eth0",
        "PYTORCH_CUDA_ALLOC_CONF": "x",
        "CUDA_VISIBLE_DEVICES": "3",  # srun gives each rank its own
        "RANK": "1",
        "HOSTNAME": "node1",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }
    assert list(of_interest(environment)) == [*environment][:3]


def test_values_that_may_be_secret_do_not_leave_their_rank() -> None:
    secrets = [
        *("NVIDIA_API_KEY", "LD_API_KEY", "DS_TOKEN", "TORCH_HOME", "POA_X", "NCCL_NEW_ONE"),
        *("UCX_AUTH", "LD_LIBRARY_PATH", "TRITON_CACHE_DIR"),
    ]
    ranks = [
        of_interest(dict.fromkeys(secrets, value) | {"OMP_NUM_THREADS": value})
        for value in ("hunter2", "hunter2", "", "other")
    ]
    assert [set(rank) for rank in ranks] == [{*secrets, "OMP_NUM_THREADS"}] * 4
    lines = differences([*ranks, {}])
    [spoken] = [line for line in lines if line.startswith("OMP_NUM_THREADS")]
    assert "OMP_NUM_THREADS: hunter2 on ranks 0-1, empty on rank 2" in spoken
    lines.remove(spoken)
    assert "hunter2" not in str([{k: v for k, v in r.items() if k in secrets} for r in ranks])
    assert {line.partition(": ")[2] for line in lines} == {
        "value 1 on ranks 0-1, value 2 on rank 2, value 3 on rank 3, not set on rank 4"
    }


def test_equal_environments_say_nothing() -> None:
    assert differences([{"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}] * 4) == []
    assert differences([{"OMP_NUM_THREADS": "1"}]) == []


def test_what_differs_is_named_with_its_ranks() -> None:
    first, second = {"OMP_NUM_THREADS": "4", "NCCL_DEBUG": ""}, {"GLOO_SOCKET_IFNAME": "eth0"}
    assert differences([first, first, second, first]) == [
        "GLOO_SOCKET_IFNAME: not set on ranks 0-1, eth0 on rank 2, not set on rank 3",
        "NCCL_DEBUG: empty on ranks 0-1, not set on rank 2, empty on rank 3",
        "OMP_NUM_THREADS: 4 on ranks 0-1, not set on rank 2, 4 on rank 3",
    ]


def test_many_values_are_cut_short() -> None:
    [line] = differences([{"NCCL_IB_HCA": f"mlx5_{rank}"} for rank in range(512)])
    assert line.startswith("NCCL_IB_HCA: mlx5_0 on rank 0, mlx5_1 on rank 1, ")
    assert line.endswith("mlx5_3 on rank 3, and 508 more")


def test_the_example_has_only_lines_that_the_launcher_can_read() -> None:
    """It splits every line at its first `=`: a comment or an empty line would be a ValueError."""
    pairs = [line.split("=", maxsplit=1) for line in EXAMPLE.read_text().splitlines()]
    assert pairs and all(len(pair) == 2 for pair in pairs)
    assert set(of_interest(dict(pairs))) == {name for name, _ in pairs}

"""One program under every launcher: the same numbers as one plain process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.programs.launch import ROOT, environment, free_port
from tests.run.test_training import TINY
from tests.run.test_training import environment as plain_environment
from tests.support.shards import make_shards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    make_shards(folder, 60)
    return folder


def words(shards: Path, out: Path, *more: str) -> list[str]:
    recipe = ["--config", "ds_configs/photos.yaml", *TINY, "schedule.steps_per_epoch=4"]
    return [*recipe, *more, f"data.train={shards}", "evaluation.queries=", f"output_dir={out}"]


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss/total"] for row in rows if "loss/total" in row]


@pytest.fixture(scope="module")
def plain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    out = tmp_path_factory.mktemp("plain")
    command = [sys.executable, "-m", "poa_ds.train", *words(shards, out)]
    subprocess.run(command, env=plain_environment(), cwd=ROOT, check=True, timeout=240)
    return losses(out)


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_launcher_gives_the_numbers_of_one_process(
    launcher: str, plain: list[float], shards: Path, tmp_path: Path
) -> None:
    program = str(Path(sys.executable).with_name(launcher))
    port = str(free_port())
    if launcher == "deepspeed":
        start = [program, "--num_gpus", "2", "--master_port", port, "--module", "poa_ds.train"]
    else:
        start = [program, "--nproc_per_node", "2", "--master_port", port, "-m", "poa_ds.train"]
    more = ["--deepspeed_config", "ds_configs/zero2.json"]
    subprocess.run(
        [*start, *words(shards, tmp_path, *more)],
        env=plain_environment(),
        cwd=ROOT,
        check=True,
        timeout=240,
    )
    assert len(plain) == 4 and losses(tmp_path) == pytest.approx(plain, rel=1e-5)


def test_srun_variables_give_the_numbers_of_one_process(
    plain: list[float], shards: Path, tmp_path: Path
) -> None:
    """Two processes with what Slurm sets, on one host; RANK and WORLD_SIZE are not set."""
    command = [sys.executable, "-m", "poa_ds.train"]
    command += words(shards, tmp_path, "--deepspeed_config", "ds_configs/zero3.json")
    port, ranks = free_port(), []
    for rank in range(2):
        variables = environment(rank, 2, port)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
            del variables[name]
        variables |= {
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_LOCALID": str(rank),
            "SLURM_STEP_NODELIST": "localhost",
        }
        ranks.append(subprocess.Popen(command, env=variables, cwd=ROOT))
    assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    assert losses(tmp_path) == pytest.approx(plain, rel=1e-5)

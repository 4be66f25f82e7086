"""Runs that make one database at the same moment, or are killed: MLflow alone leaves a torn one."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.run.test_training import ROOT, environment

RUNS = 3
OPENS = """
import os, sys, time
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from poa_ds.recipe import load
from poa_ds.track.destination import destination
from poa_ds.track.mlflow_store import open_store

folder, gate, runs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
recipe = load.recipe(Path("ds_configs/photos.yaml"), [f"output_dir={folder}", *sys.argv[4:]])
(gate / folder.name).touch()
while len(os.listdir(gate)) < runs:
    time.sleep(0.01)
ids = {"key": folder.name}
open_store(recipe, folder, ids, {}, place=destination(recipe, folder, os.environ))
print(ids["run"])
"""


def test_runs_that_make_a_database_at_once_all_get_into_it(tmp_path: Path) -> None:
    gate, base = tmp_path / "gate", tmp_path / "shared.db"
    gate.mkdir()
    runs = []
    for number in range(RUNS):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "metrics.jsonl").touch()
        words = [str(folder), str(gate), str(RUNS), f"mlflow.uri=sqlite:///{base}"]
        process = subprocess.Popen(
            [sys.executable, "-c", OPENS, *words],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        runs.append(process)
    said = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0] * RUNS, said
    with closing(sqlite3.connect(base)) as found:
        assert found.execute("select count(*) from runs").fetchone() == (RUNS,)
        names = found.execute("select name from experiments where name != 'Default'").fetchall()
    assert len(names) == 1


def size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_kill_while_a_database_is_made_leaves_none_that_is_half_made(tmp_path: Path) -> None:
    gate, folder = tmp_path / "gate", tmp_path / "run"
    gate.mkdir()
    folder.mkdir()
    (folder / "metrics.jsonl").touch()
    words = [sys.executable, "-c", OPENS, str(folder), str(gate), "1"]
    with subprocess.Popen(words, cwd=ROOT, env=environment()) as killed:
        while max(size(folder / name) for name in ("mlflow.db", ".mlflow.db.making")) < 100_000:
            assert killed.poll() is None
        killed.kill()
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(folder / "mlflow.db")) as found:
        assert found.execute("select count(*) from runs").fetchone() == (1,)
    assert not list(folder.glob("*making*"))

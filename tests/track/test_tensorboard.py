"""TensorBoard's files, read back by its own reader; and a training that has no such package."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from poa_ds import cli
from poa_ds.evaluate import results
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError, UserError
from poa_ds.track import tensorboard_store
from poa_ds.track.metrics_file import Floors, read_rows
from poa_ds.track.tensorboard_store import EventFile
from poa_ds.track.tracker import Tracker
from tests.track.test_tracker import PROTOCOL, SMALL, knn

PATIENCE_SECONDS = 120.0


def start(folder: Path, **options: object) -> Tracker:
    recipe = replace(Recipe(), tracking="tensorboard")
    return Tracker.start(recipe, output_dir=folder, is_main=True, **options)


def close(tracker: Tracker) -> None:
    assert tracker.flush(PATIENCE_SECONDS)
    tracker.close(timeout_seconds=PATIENCE_SECONDS)


def read(folder: Path, run: str) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard" / run), size_guidance={"scalars": 0})
    return found.Reload()


def points(folder: Path, run: str, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder, run).Scalars(name)]


def test_every_point_comes_once_also_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    first = start(tmp_path)
    for step in range(8):
        first.log(step, {"loss": step / 4})
    first.log_knn(8, knn(0.0), Floors(27.0), PROTOCOL, table="a table")
    assert first.flush(PATIENCE_SECONDS)
    row = ScoreRow(
        *("linear", 8, str(SMALL), "top1", 70.5, 1.5, "val", "", {}, 3.0), {"crop": 64}, "2.9"
    )
    for value in (60.0, 70.5):  # measured twice
        results.append(tmp_path / "evaluations.jsonl", replace(row, value=value))
    close(first)  # of a process that was killed nothing but this is missing
    again = start(tmp_path, resumed_ids={}, first_step=5)  # the steps behind 5 are made again
    for step in range(6, 10):
        again.log(step, {"loss": 100.0 + step})
    again.log_knn(10, knn(2.0), Floors(27.0), PROTOCOL)
    close(again)
    wanted = [(row["step"], row["loss"]) for row in read_rows(tmp_path / "metrics.jsonl")[:-1]]
    assert points(tmp_path, "training", "loss") == wanted and len(wanted) == 10
    assert points(tmp_path, str(SMALL), "knn_top1") == [(10, 53.0)]  # that of step 8 is gone
    assert points(tmp_path, str(SMALL), "linear_top1") == [(8, 70.5)]
    [picture] = read(tmp_path, "training").Images("knn_heatmap")
    assert picture.step == 10 and picture.encoded_image_string.startswith(b"\x89PNG")
    assert len(list((tmp_path / "tensorboard" / "training").iterdir())) == 1


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = start(tmp_path)
    assert tracker.flush(PATIENCE_SECONDS)
    tracker.log(0, {"loss": 1.0})
    assert tracker.flush(PATIENCE_SECONDS)
    tracker._tensorboard._first_pause_seconds = 0.2
    real = tensorboard_store.Messages.records
    broken = []

    def full(self: object, events: object) -> bytes:
        content = real(self, events)
        if len(broken) < 2:
            broken.append(len(content))
            raise OSError(28, "No space left on device")
        return content

    monkeypatch.setattr(tensorboard_store.Messages, "records", full)
    for step in range(1, 5):
        tracker.log(step, {"loss": 1.0 + step})
    close(tracker)
    said = capsys.readouterr().err
    assert said.count("TensorBoard failed") == 1 and "TensorBoard works again" in said
    assert "training goes on, every metric is in" in said
    assert points(tmp_path, "training", "loss") == [(step, 1.0 + step) for step in range(5)]


def test_a_write_that_breaks_off_leaves_whole_records(tmp_path: Path) -> None:
    from poa_ds.track.tensorboard_store import open_store

    store = open_store(tmp_path)
    file: EventFile = store._of("training")
    whole = file._file
    size = file._size

    class Small:
        """A disk that takes ten bytes more."""

        def __init__(self) -> None:
            self.left = 10

        def write(self, content: bytes) -> int:
            if not self.left:
                raise OSError(28, "No space left on device")
            taken, self.left = whole.write(content[: self.left]), 0
            return taken

        def __getattr__(self, name: str) -> object:
            return getattr(whole, name)

    file._file = Small()
    with pytest.raises(OSError, match="No space"):
        file.add([store._messages.scalars({"loss": 1.0}, 3, 0.0)])
    file._file = whole
    assert whole.seek(0, 1) == size
    file.add([store._messages.scalars({"loss": 2.0}, 4, 0.0)])
    store.close()
    assert points(tmp_path, "training", "loss") == [(4, 2.0)]


def test_without_the_package_training_goes_on_and_says_so(tmp_path: Path) -> None:
    program = f"""
import sys
sys.modules["tensorboard"] = None
from dataclasses import replace
from pathlib import Path
from poa_ds.recipe.tree import Recipe
from poa_ds.track.tracker import Tracker
recipe = replace(Recipe(), tracking="tensorboard")
tracker = Tracker.start(recipe, output_dir=Path({str(tmp_path)!r}), is_main=True)
for step in range(3):
    tracker.log(step, {{"loss": 1.0}})
tracker.close()
assert "mlflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TensorBoard failed (given up; training goes on") == 1
    assert f"poa-ds tensorboard {tmp_path}" in done.stderr
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 3


def test_the_command_writes_them_of_a_run_that_had_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tensorboard", str(tmp_path)]) == UserError.exit_status
    (tmp_path / "config.yaml").write_text("evaluation: {report_k: 20}\n")
    rows = [{"step": 1, "time": 5.0, "loss": 2.0, "knn_top1/w0384_d12": 51.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        assert cli.main(["tensorboard", str(tmp_path)]) == 0, capsys.readouterr().err
    assert "tensorboard --logdir" in capsys.readouterr().out
    assert points(tmp_path, "384x12", "knn_top1") == [(1, 51.0)]
    assert len(read(tmp_path, "training").Images("knn_heatmap")) == 1
    holder = tensorboard_store.open_store(tmp_path)
    assert cli.main(["tensorboard", str(tmp_path)]) == UserError.exit_status
    assert "is being written by another process" in capsys.readouterr().err
    holder.close()


def test_trackers_are_named_in_a_list_by_commas_or_alone() -> None:
    for text, wanted in (
        ("mlflow", {"mlflow"}),
        ("none", set()),
        (["tensorboard"], {"tensorboard"}),
        (["mlflow", "tensorboard"], {"mlflow", "tensorboard"}),
        ("tensorboard, mlflow", {"mlflow", "tensorboard"}),
        (["mlflow", "wandb"], {"mlflow", "wandb"}),
    ):
        assert load.from_dict({"tracking": text}).trackers == wanted
    for wrong in ("wandbb", ["none", "mlflow"], ["mlflow", "mlflow"], []):
        with pytest.raises(UsageError, match="one or more of mlflow, tensorboard, wandb by commas"):
            load.from_dict({"tracking": wrong})

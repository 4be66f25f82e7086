"""The training program as a user meets it: one process, real shards, kills and wrong words."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import pytest
import yaml

from poa_ds.run import exit_status
from poa_ds.run.clock import Clock
from poa_ds.system.events import read
from poa_ds.system.printable import duration
from poa_ds.system.run_folder import RunFolder
from tests.distributed.programs.forks import finished
from tests.distributed.programs.launch import ROOT
from tests.support.checkpoints import disk
from tests.support.shards import make_shards

TINY = [
    "tracking=none",
    "report=false",
    "log_every=1",
    "backbone.width={min: 32, max: 48, step: 16}",
    "backbone.depth={min: 2, max: 3, step: 1}",
    "backbone.names={}",
    "backbone.drop_path=0.2",
    "heads.prototypes=[32,48]",
    "heads.hidden=48",
    "heads.bottleneck=16",
    "batch={slots: 2, images_per_slot: 4}",
    "schedule.epochs=1",
    "schedule.steps_per_epoch=12",
    "checkpoint.every_epochs=0.25",
    "evaluation.every_epochs=0.5",
    "evaluation.batch_size=32",
]
SAVES = [3, 6, 9, 12]
PROBE = "evaluation.online.labels=true"  # what it learns outlives kills too
COMPARED = ("loss", "gradient", "knn", "size", "online")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    make_shards(root / "train", 60)
    make_shards(root / "val", 21)
    return root


def command(shards: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "poa_ds.train", "--config", "ds_configs/photos.yaml", *TINY]
    places = [f"data.train={shards}/train", f"evaluation.queries={shards}/val"]
    return [*words, *places, f"output_dir={out}", *more]


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    path = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    return kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run(words: list[str], *, status: int = 0) -> str:
    """The output of the program, which must end with that status."""
    ended, said = finished(words, environment())
    assert ended == status, said
    return said


def losses(out: Path) -> dict[int, dict[str, float]]:
    """step -> what is the same in every run of the same recipe; fails on a double point."""
    found: dict[int, dict[str, float]] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        same = {k: v for k, v in row.items() if k.startswith(COMPARED)}
        before = found.setdefault(row["step"], {})
        assert not before.keys() & same.keys(), f"step {row['step']} is there twice"
        before |= same
    return found


def events(out: Path) -> list[tuple[int, str, str]]:
    """Without what follows the number of ranks: host, device, versions."""
    found = read(RunFolder(out).events)
    return [(event.step, event.kind, event.text.partition(" on ")[0]) for event in found]


def page(out: Path) -> str:
    return RunFolder(out).report.read_text("utf-8")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run from start to end, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(command(shards, out, "report=true", PROBE))


def test_a_run_leaves_what_the_other_commands_need(whole: tuple[Path, str]) -> None:
    out, printed = whole
    assert (out / "config.yaml").exists() and (out / "deepspeed.json").exists()
    assert (out / "teacher" / "latest").read_text().strip() == "step00000012"
    assert sorted(losses(out)) == list(range(13))
    answers = {step: row["online/top1"] for step, row in losses(out).items() if step}
    assert len(answers) == 12 and all(0 <= top1 <= 100 for top1 in answers.values())
    evaluations = [json.loads(x) for x in (out / "knn.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [0, 6, 12]
    assert all(len(row["knn"]) == 4 for row in evaluations)
    assert events(out) == [(0, "start", "1 rank"), (12, "end", "")]
    assert '"ended":"finished"' in page(out) and '"steps":[0,6,12]' in page(out)
    assert "steps" in printed and "learning rate" in printed and "parameters" in printed
    closing = printed[printed.index("done: 12 steps") :].splitlines()
    assert len(closing) <= 24 and f"choose a size   poa-ds sizes {out}" in "\n".join(closing)


def test_a_log_tells_rate_time_left_and_that_the_first_evaluation_begins(
    whole: tuple[Path, str],
) -> None:
    out, printed = whole
    assert "step 0: k-NN of 4 sizes by" in printed and "\r" not in printed
    lines = [line for line in printed.splitlines() if re.match(r"step \d+: loss", line)]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluation = {r["step"]: t for r in rows if (t := r.get("speed/evaluation_seconds"))}
    seconds = {r["step"]: t / 1000 for r in rows if (t := r.get("speed/step_ms"))}
    save = {r["step"] - 1: t for r in rows if (t := r.get("speed/save_seconds"))}
    assert list(evaluation) == [0, 6, 12] and len(lines) == len(seconds) == 12
    assert list(save) == SAVES[:-1]
    for step, line in enumerate(lines[:-1], start=1):
        usual = median([seconds[s] for s in range(max(1, step - 8), step + 1)])
        # the line of step 6 is written before its evaluation
        to_come = 2 * evaluation[0] if step <= 6 else evaluation[6]
        saved = [save[s] for s in SAVES if s < step][-1:]
        to_come += sum(saved) * sum(s >= step for s in SAVES)
        left = duration((12 - step) * usual + to_come)
        assert line.startswith(f"step {step}: loss") and line.endswith(f" GiB, {left} left"), line
        assert re.search(r", lr [\d.e-]+, grad [\d.]+ / [\d.]+, [\d.,]+ images/s, data wait", line)
    assert lines[-1].endswith("GiB") and "\x1b" not in printed


def test_a_finished_run_says_so_and_changes_nothing(whole: tuple[Path, str], shards: Path) -> None:
    out, _ = whole
    before = (out / "metrics.jsonl").read_bytes()
    printed = run(command(shards, out, PROBE, "log_every=2"))
    assert "done: 12 steps" in printed
    assert "the recipe has changed: log_every: 1 -> 2 (holds from here on)" in printed
    assert (out / "metrics.jsonl").read_bytes() == before


# 3 steps lie between two checkpoints, and the second one waits for the first
@pytest.mark.parametrize(
    ("kill_after", "background"),
    [pytest.param(4, "false", marks=pytest.mark.slow), (8, "true")],
)
def test_a_killed_run_continues_bit_for_bit(
    whole: tuple[Path, str], shards: Path, tmp_path: Path, kill_after: int, background: str
) -> None:
    """SIGKILL after a step between two checkpoints; the same command goes on."""
    words = command(shards, tmp_path, PROBE, f"checkpoint.background={background}")
    process = subprocess.Popen(
        words,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith(f"step {kill_after}:"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    printed = run(words)
    assert "continues at step" in printed
    assert losses(tmp_path) == losses(whole[0])
    a, b = ((p / "knn.jsonl").read_text() for p in (tmp_path, whole[0]))
    assert a == b


def test_a_stopped_run_saves_and_continues_bit_for_bit(
    whole: tuple[Path, str], shards: Path, tmp_path: Path
) -> None:
    """SIGUSR1 after a step without a checkpoint; no step is done twice."""
    words = command(shards, tmp_path, "report=true", PROBE)
    with subprocess.Popen(
        words, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("step 4:"):
                process.send_signal(signal.SIGUSR1)
                break
        said = process.stdout.read()
    assert "stopped by SIGUSR1, saved at step" in said
    assert re.search(r"^checkpoint +\S+/step\d+$", said, re.MULTILINE)
    assert process.returncode == exit_status.STOPPED
    record = exit_status.read(tmp_path)
    assert sorted(losses(tmp_path)) == [*range(record.step + 1)]
    assert '"ended":"stopped (SIGUSR1), can go on"' in page(tmp_path)
    assert f"continues at step {record.step}" in run(words)
    assert '"ended":"finished"' in page(tmp_path)
    assert exit_status.read(tmp_path) == exit_status.Ended(exit_status.DONE, 12)
    assert events(tmp_path) == [
        (0, "start", "1 rank"),
        (record.step, "stop", "SIGUSR1"),
        (record.step, "resume", "1 rank"),
        (12, "end", ""),
    ]
    assert losses(tmp_path) == losses(whole[0])


def test_an_interrupt_ends_with_130_and_one_line(shards: Path, tmp_path: Path) -> None:
    words = command(shards, tmp_path, "schedule.steps_per_epoch=1000")
    process = subprocess.Popen(
        words,
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 2:"):
            process.send_signal(signal.SIGINT)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted\nafter step " in errors and "Traceback" not in errors


def test_a_dry_run_takes_two_steps_and_writes_nothing(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "never"
    printed = run([*command(shards, out, "schedule.ibot_start_epoch=1"), "--dry-run"])
    assert "the second step took" in printed and "GiB" in printed and not out.exists()
    assert "warning: iBOT never starts: schedule.ibot_start_epoch 1 is after 12 steps" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone.widht.max=64"], "did you mean|backbone.width"),
        (["batch.slots=two"], "batch.slots"),
        (["data.train=nowhere"], "nowhere"),
        (["precision=fp16"], "fp16"),
        (["precision=bf16"], "zero1.json"),
        (["output_dir="], "output_dir"),
    ],
)
def test_wrong_words_are_named(
    shards: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    started = time.monotonic()
    done = subprocess.run(
        command(shards, tmp_path / "out", *words),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert re.search(message, done.stderr) and "Traceback" not in done.stderr
    assert "error:" in done.stderr
    assert time.monotonic() - started < 120 and not (tmp_path / "out" / "checkpoints").exists()


def test_other_data_or_another_architecture_cannot_continue(
    whole: tuple[Path, str], shards: Path
) -> None:
    out, _ = whole
    printed = run(command(shards, out, "heads.prototypes=[32,64]"), status=2)
    assert "heads.prototypes: [32, 48] -> [32, 64]" in printed and "another output_dir" in printed
    assert yaml.safe_load((out / "config.yaml").read_text())["heads"]["prototypes"] == [32, 48]
    printed = run(command(shards, out, f"data.train={shards}/val", "evaluation.queries="), status=1)
    assert "other data" in printed


def test_waiting_for_data_is_said_when_it_begins() -> None:
    clock = Clock(1)

    def said(share: float) -> str:
        return clock.warning({"speed/data_wait_ms": share, "speed/step_ms": 1.0}, 3)

    assert said(0.9) == ""  # the workers were starting
    assert said(0.06).startswith("warning: 6% of a step is waiting for data: data.workers 3")
    assert said(0.5) == "" and said(0.04) == "" and said(0.2) == ""  # it goes on
    assert said(0.02) == "" and said(0.04) == ""
    assert said(0.2).startswith("warning: 20%")


@pytest.mark.slow
def test_a_full_disk_stops_a_run_after_two_checkpoints_and_it_continues(
    whole: tuple[Path, str], shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = command(shards, out, PROBE, "checkpoint.background=false")
    with disk(out / "checkpoints", "16m") as place:
        process = subprocess.Popen(
            words,
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line in process.stdout:
            if line.startswith("step 4:"):
                subprocess.run(["dd", "if=/dev/zero", f"of={place}/full"], capture_output=True)
                break
        said = process.communicate(timeout=240)[0]
        assert process.returncode == 1
        assert "could not be saved: rank 0: shard-00000.safetensors: No space left on" in said
        assert "Training goes on" in said and "That is 2 in a row, so the run stops" in said
        (place / "full").unlink()
        assert "continues at step 3 from" in run(words)
    assert losses(out) == losses(whole[0])


@pytest.mark.slow
def test_a_disk_without_room_for_an_evaluation_is_named(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "knn.jsonl").symlink_to("/dev/full")
    said = run(command(shards, tmp_path), status=1)
    assert f"error: {tmp_path}: No space left on device (evaluation after step 0)" in said
    assert "the same command continues" in said and "Traceback" not in said


def test_bad_numbers_are_named_and_after_some_steps_the_run_stops(
    shards: Path, tmp_path: Path
) -> None:
    """The first step moves the weights so far that nothing after it is finite."""
    more = ("schedule.base_lr=1e30", "schedule.warmup_epochs=0", "max_bad_steps=2", "report=true")
    said = run(command(shards, tmp_path, *more, "evaluation.queries="), status=1)
    named = re.findall(r"rank 0: step (\d+) skipped, .*: slot 0, size \d+x\d: total is nan", said)
    assert named == ["2", "3"]
    assert "step 2: loss nan" in said and "2 steps in a row had numbers that are not finite" in said
    assert events(tmp_path)[1:] == [(2, "skipped", "not all numbers were finite")]
    [path] = tmp_path.glob("bad_step*.json")
    assert path.name == "bad_step00000003_rank00000.json" and str(path) in said
    found = json.loads(path.read_text())
    assert found["step"] == 3 and found["terms"]["koleo"] == "nan" and len(found["sizes"]) == 2
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_total"] for row in rows] == [0, 1]
    assert rows[1]["nonfinite/loss/total"] == 1
    assert '"ended":""' in page(tmp_path) and "not all numbers were finite" in page(tmp_path)

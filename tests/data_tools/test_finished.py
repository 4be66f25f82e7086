"""Sharding in several processes and after a kill: the same bytes as in one go."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_tools import check, folder, shard
from data_tools.finished import Journal
from data_tools.parallel import ordered
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.manifest import JOURNAL
from poa_ds.system.errors import UserError
from tests.support.odd_images import stack
from tests.support.shards import content, make_shards, run, save


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, some of several pages, and two files that are none."""
    root = tmp_path_factory.mktemp("tree") / "in"
    for number in range(60):
        save(root / "ab"[number % 2] / f"{number:02d}.jpg", number)
    for number in range(0, 60, 7):
        (root / "ab"[number % 2] / f"{number:02d}.jpg").write_bytes(stack("GIF", 3))
    for name in ("a/10.jpg", "b/51.jpg"):
        (root / name).write_text("<html>404</html>")
    return root


def words(tree: Path, out: Path, workers: int) -> list[str]:
    limit = ("--images-per-shard", "4", "--workers", str(workers))
    return ["--root", str(tree), "--out", str(out), *limit]


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(folder, *words(tree, out, 0))
    return content(out)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_writes_the_same_bytes(
    tree: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    monkeypatch.setattr(shard, "FEW", 0)
    run(folder, *words(tree, tmp_path / "out", workers))
    assert content(tmp_path / "out") == whole
    assert run(check, tmp_path / "out", "--workers", workers) == 0


def killed_run(tree: Path, out: Path, delay: float) -> int:
    """Exit status of a sharding process that is killed after `delay` seconds of writing."""
    code = (
        "import sys, time; from data_tools import folder, shard\n"
        "from tests.support.shards import run\n"
        "shard.FEW = 0; pack = shard.pack\n"
        "def slow(portion): time.sleep(0.02 * len(portion)); return pack(portion)\n"
        "shard.pack = slow; run(folder, *sys.argv[1:])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words(tree, out, 1)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (out / JOURNAL).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_nothing_wrong(
    tree: Path, whole: dict[str, bytes], tmp_path: Path, kills: int
) -> None:
    rng, out = random.Random(kills), tmp_path / "out"
    for _ in range(kills):
        status = killed_run(tree, out, rng.uniform(0, 2.6 / kills))
        if (out / "dataset.json").exists():
            assert content(out) == whole or status == -signal.SIGKILL
            ShardFolder.open(out)
            break
        with pytest.raises(UserError, match="cut short"):
            ShardFolder.open(out)
    run(folder, *words(tree, out, 0))
    assert content(out) == whole


def cut_short(tree: Path, out: Path, shards: int) -> None:
    """Leaves a folder as a run leaves it that was killed after so many shards."""
    noted = 0

    class Stopped(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        note = Journal.note

        def count(self: Journal, *args: object, **named: object) -> None:
            nonlocal noted
            note(self, *args, **named)
            noted += 1
            if noted == shards:
                raise Stopped

        patch.setattr(Journal, "note", count)
        with pytest.raises(Stopped):
            run(folder, *words(tree, out, 0))


def test_finished_shards_are_kept(
    tree: Path, whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    cut_short(tree, out, 9)
    before = {path.name: path.stat() for path in out.glob("*.tar")}
    assert len(before) == 9
    run(folder, *words(tree, out, 0))
    assert "9 of 9 shards are kept" in capsys.readouterr().err
    for name, stat in before.items():
        assert (out / name).stat().st_ino == stat.st_ino
        assert (out / name).stat().st_mtime_ns == stat.st_mtime_ns
    assert content(out) == whole


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_finished_shard_that_was_damaged_is_written_again(
    tree: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    out = tmp_path / "out"
    cut_short(tree, out, 9)
    path = out / "shard-000004.tar"
    if damage == "gone":
        path.unlink()
    else:
        found = bytearray(path.read_bytes())
        found[700] ^= 1  # in the first image: the headers stay as they were
        path.write_bytes(found if damage == "bit" else found[:5000])
    run(folder, *words(tree, out, 0))
    assert "4 of 9 shards are kept" in capsys.readouterr().err
    assert content(out) == whole


def test_a_torn_last_line_of_the_journal_is_no_shard(
    tree: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    cut_short(tree, tmp_path / "out", 5)
    path = tmp_path / "out" / JOURNAL
    text = path.read_text()
    path.write_text(text[:-20])
    run(folder, *words(tree, tmp_path / "out", 0))
    assert content(tmp_path / "out") == whole


def test_another_input_begins_anew(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short(tree, tmp_path / "out", 5)
    run(folder, *words(tree, tmp_path / "out", 0), "--seed", 1)
    assert "input or options changed, nothing is kept" in capsys.readouterr().err
    run(folder, *words(tree, tmp_path / "fresh", 0), "--seed", 1)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_a_finished_folder_is_finished(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, *words(tree, out, 0))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / JOURNAL).write_text("")  # killed in the last moment
    assert run(folder, *words(tree, out, 2)) == 0
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    (out / "shard-000000.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000000\.tar is missing"):
        run(folder, *words(tree, out, 0))


def test_a_folder_that_another_finishes_meanwhile_is_left_to_it(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, *words(tree, out, 0))
    before = content(out)
    with pytest.raises(UserError, match="another process has just finished it"):
        Journal.open(out, "another plan", workers=0)
    assert content(out) == before and not (out / JOURNAL).exists()


def test_two_writers_do_not_meet_in_one_folder(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Journal.open(tmp_path / "out", "plan", workers=0):
        with pytest.raises(UserError, match="another process is writing there"):
            run(folder, *words(tree, tmp_path / "out", 0))


def test_workers_end_with_their_parent() -> None:
    code = (
        "from data_tools.parallel import ordered\n"
        "from tests.data_tools.test_finished import pid_after_a_while\n"
        "for pid in ordered(pid_after_a_while, range(9), 2): print(pid, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{worker}").exists()


def pid_after_a_while(number: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_is_an_error_with_advice() -> None:
    with pytest.raises(UserError, match="fewer --workers"):
        list(ordered(die, range(3), 2))


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(ordered(str, range(50), 2)) == [str(number) for number in range(50)]
    assert list(ordered(str, [], 2)) == [] and list(ordered(str, [1], 2)) == ["1"]


def test_dataset_json_does_not_tell_the_workers(tmp_path: Path) -> None:
    make_shards(tmp_path / "x", workers=7)
    made = json.loads((tmp_path / "x" / "dataset.json").read_text())["made"]
    assert "workers" not in made["arguments"] and len(made["plan"]) == 64


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", '{"shard": 3, "next": 4}', '{"shard": {"file": "x"}, "next": 1, "rejected": []}'],
)
def test_a_strange_line_of_a_journal_is_where_it_ends(
    tree: Path, whole: dict[str, bytes], tmp_path: Path, line: str
) -> None:
    out = tmp_path / "out"
    killed_run(tree, out, 0.5)
    text = (out / JOURNAL).read_text().splitlines(keepends=True)
    (out / JOURNAL).write_text("".join([*text[:2], line + "\n", *text[2:]]))
    run(folder, *words(tree, out, 1))
    assert content(out) == whole

"""Files and folders that are whole or as they were before, whatever happens in between."""

import ast
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from poa_ds.system import files
from poa_ds.system.errors import UserError
from poa_ds.system.files import publish_folder, replace_bytes, replace_text, whole_folder
from tests.test_architecture import modules

ROOT = Path(__file__).parents[2]


def test_a_file_is_replaced_with_its_content_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "latest", []

    def noted(name: str, call):
        def run(*words: object) -> None:
            done.append((name, path.read_text() if path.exists() else None))
            call(*words)

        return run

    replace_text(path, "one")
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    replace_text(path, "two")
    assert done == [("fsync", "one"), ("replace", "one"), ("fsync", "two")]  # the folder, last
    replace_bytes(path, b"three")
    assert path.read_text() == "three" and os.listdir(tmp_path) == ["latest"]


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    replace_text(path, "whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            replace_text(path, "more than there is room for")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "whole" and os.listdir(tmp_path) == ["config.yaml"]


def test_the_file_beside_it_has_a_name_that_nobody_foresees(tmp_path: Path) -> None:
    """A link that somebody has put there would lead the content elsewhere."""
    (tmp_path / "latest.partial").symlink_to(tmp_path / "elsewhere")
    replace_text(tmp_path / "latest", "new")
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "latest").read_text() == "new"


REPLACES = """
import sys
from pathlib import Path
from poa_ds.system import files
from poa_ds.system.files import replace_bytes
for _ in range(200):
    replace_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)
"""


def test_processes_that_replace_one_file_at_once_all_succeed(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.json"
    words = [sys.executable, "-c", REPLACES, str(path)]
    replacing = [subprocess.Popen([*words, letter], cwd=ROOT) for letter in "abc"]
    while any(process.poll() is None for process in replacing):
        found = path.read_bytes() if path.exists() else b""
        assert len(set(found)) <= 1 and len(found) in (0, 100_000)
    assert [process.returncode for process in replacing] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["mlflow.json"]


def test_what_a_kill_left_beside_a_file_goes_and_what_is_at_work_stays(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    left, other = (tmp_path / f"{name}.{'0' * 16}.partial" for name in ("latest", "index.npy"))
    working = tmp_path / f"latest.{'1' * 16}.partial"
    for name in (left, other, working):
        name.touch()
    with open(working) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        replace_text(path, "new")
    assert {*os.listdir(tmp_path)} == {"latest", other.name, working.name}


def test_what_is_whole_gets_its_name_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    files.give_name(tmp_path / "one", tmp_path / "named")
    files.give_name(tmp_path / "two" / "file", tmp_path / "named" / "file")
    assert (tmp_path / "named" / "file").read_text() == "two"
    assert synced == [tmp_path, tmp_path / "named"]
    (tmp_path / "three").mkdir()
    with pytest.raises(OSError, match="not empty"):
        files.give_name(tmp_path / "three", tmp_path / "named")


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "teacher"
    with whole_folder(folder) as partial:
        (partial / "weights").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(folder) as partial:
        (partial / "weights").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(UserError, match="cannot be written"), whole_folder(folder) as partial:
        (partial / "weights").write_text("half")
        (partial / "gone").symlink_to("nowhere")  # cannot be synced
    assert (folder / "weights").read_text() == "old"
    with whole_folder(folder) as partial:
        (partial / "other").write_text("new")
    assert os.listdir(folder) == ["other"] and os.listdir(folder.parent) == ["teacher"]


def test_a_folder_gets_its_name_with_its_files_on_the_disk_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, named, synced = tmp_path / "start.partial", tmp_path / "start", []
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "weights").write_text("whole")

    def noted(path: Path) -> None:
        synced.append((path.name, named.exists()))

    monkeypatch.setattr(files, "sync", noted)
    publish_folder(partial, named)
    assert (named / "deep" / "weights").read_text() == "whole" and not partial.exists()
    inside = ["deep", "weights", "start.partial"]
    assert synced == [*((name, False) for name in inside), (tmp_path.name, True)]


def test_two_that_fill_one_folder_do_not_mix(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with whole_folder(folder) as partial:
        (partial / "weights").write_text("first")
        with pytest.raises(UserError, match="another process is writing there"):
            with whole_folder(folder) as other:
                (other / "weights").write_text("second")
        assert (partial / "weights").read_text() == "first"
    assert os.listdir(folder) == ["weights"]


def test_what_a_killed_process_has_left_does_not_get_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".model.partial" / "deep").mkdir(parents=True)
    (tmp_path / ".model.partial" / "weights").touch()
    with whole_folder(tmp_path / "model") as partial:
        (partial / "new").touch()
    assert os.listdir(tmp_path / "model") == ["new"] and os.listdir(tmp_path) == ["model"]


def test_a_result_that_cannot_be_written_names_its_option(tmp_path: Path) -> None:
    files.check_out("--out", tmp_path / "page.html")
    with pytest.raises(UserError, match="no ordinary file"):
        files.check_out("--json", Path("/dev/null"))
    with pytest.raises(UserError, match=r"^--out .*page.html: Is a directory$"):
        (tmp_path / "page.html").mkdir()  # since it was asked
        files.write_out("--out", tmp_path / "page.html", "text")


def test_nobody_else_puts_a_file_in_the_place_of_another() -> None:
    """Folders of checkpoints are renamed in checkpoint.folders; tables of kernels are sources."""
    allowed = {"poa_ds.system.files", "poa_ds.checkpoint.folders"}
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        if name not in allowed
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and (
            ast.unparse(node.func) in ("os.replace", "os.rename", "shutil.move")
            or (isinstance(node.func, ast.Attribute) and node.func.attr == "rename")
        )
    ]
    assert not wrong

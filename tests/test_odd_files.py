"""Whatever stands in the files of a run's folder: one sentence that names the file, or nothing."""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from poa_ds.checkpoint import deployed, folders
from poa_ds.evaluate import results, score_rows
from poa_ds.recipe import ds_json
from poa_ds.run import bad_samples, exit_status
from poa_ds.system.errors import UserError
from poa_ds.track import mlflow_ids, mlflow_sync
from poa_ds.track.metrics_file import read_rows

CONTENTS = {
    "nothing": b"",
    "a list": b"[1]",
    "a number": b"7",
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a long number": b'{"step": ' + b"9" * 5000 + b"}",
    "other kinds": b'{"step": [], "key": 3, "children": 5, "steps": "x", "format": 2}',
    "escapes": b'{"step": "\\u001b[2J", "key": ["\\u001b[2J"]}',
}
READERS: dict[str, Callable[[Path], object]] = {
    "metrics.jsonl": read_rows,
    "bad_samples.jsonl": lambda path: bad_samples.keep_through(path, 1),
    "knn.jsonl": results.read,
    "evaluations.jsonl": score_rows.read,
    "mlflow.json": lambda path: mlflow_ids.known(path.parent, {}),
    "derived.json": lambda path: mlflow_sync.is_complete(path.parent, [{"step": 1}]),
    "config.json": lambda path: deployed.read_recipe(path),
    "manifest.json": lambda path: folders.read_manifest(path.parent),
    "deepspeed.json": ds_json.read,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", READERS)
def test_a_file_with_odd_content_is_named_in_one_sentence(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content + b"\n{}\n" * name.endswith("l"))
    if name == "deepspeed.json" and content.startswith(b'{"step'):
        pytest.skip("an object of some keys is for DeepSpeed to judge")
    with pytest.raises(UserError) as error:
        READERS[name](path)
    said = str(error.value)
    assert name in said and len(said) < 300 + len(str(tmp_path)) and "\n" not in said
    assert "\x1b" not in said


@pytest.mark.parametrize("name", sorted(READERS.keys() - {"deepspeed.json"}))
def test_a_pipe_in_the_place_of_a_file_is_never_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    reader = Thread(target=lambda: said.append(_message(READERS[name], tmp_path / name)))
    reader.daemon, said = True, []
    reader.start()
    reader.join(30)
    assert said in (["a pipe"], ["nothing"]), "it waits for somebody who writes into it"


def _message(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except UserError as error:
        return "a pipe" if "a pipe, not a regular file" in str(error) else str(error)
    return "nothing"


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_record_of_the_end_that_is_none_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "ended.json").write_bytes(content)
    assert exit_status.read(tmp_path) is None
    (tmp_path / "ended.json").unlink()
    os.mkfifo(tmp_path / "ended.json")
    assert exit_status.read(tmp_path) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("shards", 3), ("shards", [3]), ("shards", [{"file": 1}]), ("extra", []), ("state", 1)),
        *(("extra", {"file": "x", "bytes": -1, "crc32": 0}), ("recipe", {}), ("shapes", [])),
        ("shards", [{"file": "x", "bytes": 1, "crc32": 0, "pieces": 7}]),
    ],
)
def test_a_manifest_with_a_fitting_checksum_and_odd_content_is_damaged(
    key: str, value: object, tmp_path: Path
) -> None:
    file = {"file": "x.safetensors", "bytes": 1, "crc32": 0}
    manifest: dict[str, object] = {name: {} for name in folders._KEYS}
    manifest |= {"format": folders.FORMAT, "extra": file, "recipe": ""}
    manifest |= {"shards": [file | {"pieces": {}}]}
    folders.write_manifest(tmp_path, manifest)
    assert folders.read_manifest(tmp_path) == manifest
    folders.write_manifest(tmp_path, manifest | {key: value})
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        folders.read_manifest(tmp_path)
    assert "damaged" in str(folders.problem(tmp_path))


def test_a_pointer_to_the_newest_teacher_that_is_no_text_is_passed_over(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher" / "step00000003"
    teacher.mkdir(parents=True)
    (teacher / deployed.WEIGHTS).touch()
    (tmp_path / "teacher" / "latest").write_bytes(b"\xff\xfe")
    assert deployed.find_teacher(tmp_path) == teacher

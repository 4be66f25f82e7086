"""poa-ds embed: features of any images are those of the extracted model, row by row."""

import argparse
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from poa_ds.cli import main
from poa_ds.evaluate.embed import command as embed
from poa_ds.evaluate.embed.files import Parts
from poa_ds.export.load import load
from tests.support.shards import image, make_shards
from tests.support.teachers import make_teacher

COUNT, DAMAGED = 9, 4  # images of the tree, and the row whose file is cut
SIZES = "32x2,48x3"
LABELS = ("w0032_d02", "w0048_d03")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_teacher(tmp_path / "run")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Nine images of 32 x 32 in two folders, and what is passed over."""
    root = tmp_path / "tree"
    for number in range(COUNT):
        place = root / ("ant" if number < 5 else "bee") / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(number, 32, 32)).save(place)
    (root / "ant" / ".hidden.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    return root


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def embedded(run: Path, out: Path, *words: object) -> int:
    given = ["--out", out, "--sizes", SIZES, "--batch-size", 2, "--workers", 0, *words]
    return main(["embed", str(run), *map(str, given)])


def test_rows_are_what_the_extracted_model_gives(run: Path, tree: Path, tmp_path: Path) -> None:
    cut(tree / "ant" / f"{DAMAGED}.png")
    assert embedded(run, tmp_path / "out", "--images", tree) == 0
    pixels = np.stack([image(number, 32, 32) for number in range(COUNT)])
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    images = torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    whole = [number for number in range(COUNT) if number != DAMAGED]
    for size, label in zip(SIZES.split(","), LABELS, strict=True):
        found = load_file(tmp_path / "out" / f"{label}.safetensors")
        wanted = load(run, size)(images).numpy()
        np.testing.assert_allclose(found["features"][whole], wanted[whole], atol=1e-5)
        assert np.isnan(found["features"][DAMAGED]).all()
        assert found["labels"].tolist() == [0] * 5 + [1] * 4
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    assert [row["key"] for row in rows] == [
        f"{'ant' if number < 5 else 'bee'}/{number}.png" for number in range(COUNT)
    ]
    assert [number for number, row in enumerate(rows) if "damaged" in row] == [DAMAGED]


def test_two_do_not_fill_one_folder_at_once(
    run: Path,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    work, statuses = embed.Embedding.run, []

    def meanwhile(self: embed.Embedding, *args: object, **more: object) -> None:
        if not statuses:
            statuses.append(embedded(run, tmp_path / "out", "--images", tree))
            statuses.append(embedded(run, tmp_path / "other", "--images", tree))
        work(self, *args, **more)

    monkeypatch.setattr(embed.Embedding, "run", meanwhile)
    before = {*tmp_path.iterdir()}
    assert embedded(run, tmp_path / "out", "--images", tree) == 0 and statuses == [1, 0]
    assert f"out, process {os.getpid()} on" in capsys.readouterr().err
    assert {*tmp_path.iterdir()} - before == {tmp_path / "out", tmp_path / "other"}


def test_patches_are_those_of_the_extracted_model_in_three_formats(
    run: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cut(tree / "ant" / f"{DAMAGED}.png")
    for style in ("safetensors", "npy", "parquet"):
        words = ("--images", tree, "--what", "patches", "--format", style)
        assert embedded(run, tmp_path / style, *words) == 0
    assert f"{2 * COUNT * 16 * (32 + 48) / 1e6:.3g} MB" in capsys.readouterr().out
    whole = [number for number in range(COUNT) if number != DAMAGED]
    pixels = np.stack([image(number, 32, 32) for number in range(COUNT)])
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    images = torch.from_numpy((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
    for size, label in zip(SIZES.split(","), LABELS, strict=True):
        found = load_file(tmp_path / "safetensors" / f"{label}.safetensors")["features"]
        assert found.dtype == np.float16 and np.isnan(found[DAMAGED]).all()
        wanted = load(run, size).forward_features(images)[:, 1:].numpy()
        np.testing.assert_allclose(found[whole], wanted[whole], atol=4e-3)  # fp16 below 4
        np.testing.assert_array_equal(np.load(tmp_path / "npy" / f"{label}.npy"), found)
        table = pyarrow.parquet.read_table(tmp_path / "parquet" / f"{label}.parquet")
        rows = np.array(table["features"].to_pylist(), np.float16)
        np.testing.assert_array_equal(rows.reshape(found.shape), found)


def test_three_formats_hold_the_same(run: Path, tree: Path, tmp_path: Path) -> None:
    for style in ("safetensors", "npy", "parquet"):
        words = ("--images", tree, "--format", style, "--what", "cls+avg", "--normalise")
        assert embedded(run, tmp_path / style, *words) == 0
    wanted = load_file(tmp_path / "safetensors" / f"{LABELS[0]}.safetensors")["features"]
    assert wanted.shape == (COUNT, 64)
    np.testing.assert_allclose(np.linalg.norm(wanted, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / f"{LABELS[0]}.npy"), wanted)
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / f"{LABELS[0]}.parquet")
    np.testing.assert_array_equal(np.array(table["features"].to_pylist(), np.float32), wanted)
    assert table["label"].to_pylist() == ["ant"] * 5 + ["bee"] * 4


def test_a_list_gives_its_order_and_shards_give_theirs(
    run: Path, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_text("tree/bee/7.png\tone\ntree/ant/0.png\n")
    assert embedded(run, tmp_path / "all", "--images", tree) == 0
    assert embedded(run, tmp_path / "two", "--list", tmp_path / "list.txt") == 0
    whole, two = (load_file(tmp_path / n / f"{LABELS[1]}.safetensors") for n in ("all", "two"))
    # another place in a batch: another order of the same sums
    np.testing.assert_allclose(two["features"], whole["features"][[7, 0]], atol=1e-5)
    assert two["labels"].tolist() == [0, -1]
    folder = make_shards(tmp_path / "shards", 5)
    assert embedded(run, tmp_path / "tars", "--shards", tmp_path / "shards", "--dtype", "fp16") == 0
    found = load_file(tmp_path / "tars" / f"{LABELS[0]}.safetensors")
    assert found["features"].dtype == np.float16
    assert found["labels"].tolist() == folder.labels.tolist()
    rows = [json.loads(line)["key"] for line in (tmp_path / "tars" / "rows.jsonl").open()]
    assert rows == [f"{folder.shard(i)}/{folder.key(i)}" for i in range(5)]


def test_a_killed_command_goes_on_where_it_was(
    run: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PART_BATCHES", 1)
    cut(tree / "ant" / "0.png")
    assert embedded(run, tmp_path / "whole", "--images", tree) == 0
    kept, write = [], Parts.write

    def killed(parts: Parts, span: range, *rest: object) -> None:
        if span.start == 4 and not kept[2:]:
            raise KeyboardInterrupt
        kept.append(span.start)
        write(parts, span, *rest)

    monkeypatch.setattr(Parts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        embed.run(arguments_of(run, tmp_path / "out", tree))
    assert kept == [0, 2] and not (tmp_path / "out").exists()
    assert embedded(run, tmp_path / "out", "--images", tree, "--normalise") == 1  # another setting
    kept.append(-1)
    assert embedded(run, tmp_path / "out", "--images", tree) == 0
    assert kept == [0, 2, -1, 4, 6, 8]
    for name in (*(f"{label}.safetensors" for label in LABELS), "rows.jsonl", "embedding.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(tmp_path.glob(".*.parts"))
    assert embedded(run, tmp_path / "out", "--images", tree) == 0  # is there already
    assert kept[-1] == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_ends_between_two_parts(
    run: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(embed, "PART_BATCHES", 1)
    write, kept, before = Parts.write, [], signal.getsignal(signal.SIGTERM)

    def asked(parts: Parts, span: range, *rest: object) -> None:
        write(parts, span, *rest)
        kept.append(span.start)
        if span.start == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Parts, "write", asked)
    words = ("--images", tree, "--workers", workers)
    assert embedded(run, tmp_path / "out", *words) == 75
    assert kept == [0, 2] and not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) == before
    assert embedded(run, tmp_path / "out", *words) == 0
    assert kept == [0, 2, 4, 6, 8]


def test_sigterm_in_the_only_part_is_not_forgotten(
    run: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a command that goes on with the features would begin its work."""
    write, kept = Parts.write, []

    def asked(parts: Parts, span: range, *rest: object) -> None:
        write(parts, span, *rest)
        kept.append(span)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Parts, "write", asked)
    assert embedded(run, tmp_path / "out", "--images", tree) == 75
    assert kept == [range(COUNT)] and not (tmp_path / "out").exists()
    assert embedded(run, tmp_path / "out", "--images", tree) == 0
    assert kept == [range(COUNT)]  # nothing was left to do
    found = load_file(tmp_path / "out" / f"{LABELS[0]}.safetensors")["features"]
    assert len(found) == COUNT and np.isfinite(found).all()


def arguments_of(run: Path, out: Path, tree: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    embed.add_arguments(parser)
    words = [run, "--out", out, "--sizes", SIZES, "--batch-size", 2, "--workers", 0]
    return parser.parse_args([*map(str, words), "--images", str(tree)])


def test_a_dry_run_says_the_cost_and_writes_nothing(
    run: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = {*tmp_path.iterdir()}
    assert embedded(run, tmp_path / "out", "--images", tree, "--dry-run") == 0
    assert "9 images x 2 sizes" in capsys.readouterr().out
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--images", "nowhere"], "no such folder"),
        (["--images", "empty"], "no image in it"),
        (["--list", "empty.txt"], "names no image"),
        (["--list", "wrong.txt"], "gone.png"),
    ],
)
def test_bad_input_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture, words: list[str], named: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.txt").write_text("gone.png\n")
    assert embedded(run, tmp_path / "out", words[0], tmp_path / words[1]) == 1
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_stands_in_the_place_is_never_replaced(
    run: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    assert embedded(run, tmp_path / "out", "--images", tree) == 1
    assert "is another thing" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"

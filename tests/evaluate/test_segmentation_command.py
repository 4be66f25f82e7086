"""poa-ds eval segmentation: layouts and their mistakes, what it chooses, a stopped one goes on."""

import os
import shutil
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from poa_ds.cli import main
from poa_ds.data.image.pixels import png
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.evaluate.segmentation import masks
from poa_ds.evaluate.segmentation.training import Training
from tests.support.masked import make_shapes, save_mask, shape
from tests.support.teachers import make_teacher


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_shapes(tmp_path / "train", 6, side=32)
    make_shapes(tmp_path / "val", 3, first=100, side=32)
    return make_teacher(tmp_path / "run")


def segmentation(run: Path, *more: object, layout: str = "folder") -> int:
    places = ("--train", run.parent / "train", "--val", run.parent / "val", "--layout", layout)
    short = ("--sizes", "32x2", "--crop", 32, "--steps", 4, "--batch", 2, "--workers", 0)
    words = ("eval", "segmentation", run, *places, *short, *more)
    return main([str(word) for word in words])


def rows(run: Path) -> list[ScoreRow]:
    return score_rows.read(run / "evaluations.jsonl")


def test_every_metric_has_a_row_with_its_error_and_how_the_rate_was_chosen(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert segmentation(run, "--sizes", "32x2,48x2") == 0
    found = rows(run)
    names = ["seg_miou", "seg_aacc", "seg_macc"]
    assert [(row.size, row.name) for row in found] == [
        (size, name) for size in ("32x2", "48x2") for name in names
    ]
    for row in found:
        assert 0 < row.value < 100 and row.error > 0 and row.chosen_by == "held_out"
        assert row.setting["rate"] in (1e-4, 3e-4, 1e-3, 3e-3)
        assert row.protocol["train"]["images"] == 5 and row.protocol["held_out"]["images"] == 1
        assert row.protocol["classes"] == 4 and row.protocol["published"] is False
    assert "4 steps x 2 crops of 32 pixels x 2 sizes = " in capsys.readouterr().err
    assert not (run / "segmentation").exists()
    assert main(["sizes", str(run), "--worth", "seg_miou"]) == 0
    assert "seg_miou" in capsys.readouterr().out


def test_sizes_do_not_know_of_each_other_and_may_take_turns(run: Path) -> None:
    assert segmentation(run, "--sizes", "32x2,48x2") == 0
    assert segmentation(run, "--sizes", "32x2,48x2", "--memory-gb", "1e-6") == 0
    found = [(row.size, row.name, row.value, row.setting) for row in rows(run)]
    assert found[:6] == found[6:]


def test_published_holds_nothing_out_and_has_one_rate(run: Path) -> None:
    assert segmentation(run, "--published") == 0
    [row, *_] = rows(run)
    assert (row.name, row.chosen_by, row.setting["rate"]) == ("seg_miou", "", 1e-3)
    assert row.protocol["held_out"] is None and row.protocol["train"]["images"] == 6
    assert row.protocol["published"] is False  # steps and crop are others


def test_a_dry_run_says_the_cost_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    before = sorted(run.rglob("*"))
    assert segmentation(run, "--dry-run") == 0
    assert "FLOPs" in capsys.readouterr().out and sorted(run.rglob("*")) == before


def test_a_stopped_command_goes_on_to_the_very_same_numbers(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Once while it learns, once while it measures: nothing is learnt twice."""
    assert segmentation(run) == 0
    learn, counts, steps = Training.learn, Training.counts, []

    def noted(self: Training, step: int, blocks: list) -> None:
        learn(self, step, blocks)
        steps.append(step)
        if step == 1 and len(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopped(self: Training, *args: object, **more: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return counts(self, *args, **more)

    monkeypatch.setattr(Training, "learn", noted)
    assert segmentation(run) == os.EX_TEMPFAIL
    assert "stopped and saved" in capsys.readouterr().out
    monkeypatch.setattr(Training, "counts", stopped)
    assert segmentation(run) == os.EX_TEMPFAIL
    monkeypatch.setattr(Training, "counts", counts)
    assert segmentation(run) == 0
    assert steps == [0, 1, 2, 3]
    one, other = rows(run)[:3], rows(run)[3:]
    assert [(r.name, r.value, r.setting) for r in one] == [
        (r.name, r.value, r.setting) for r in other
    ]
    assert not (run / "segmentation").exists()


def test_damaged_images_are_replaced_or_left_out_and_said(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    """In training one whose pixels are cut short, and a mask; in val one of each kind."""
    for part, number in (("train", 1), ("val", 100)):
        path = run.parent / part / "images" / f"{number:04d}.png"
        path.write_bytes(path.read_bytes()[:-200])
    (run.parent / "train" / "masks" / "0003.png").write_bytes(b"no image")
    assert segmentation(run) == 0
    said = capsys.readouterr().err
    assert "1 damaged images or masks of" in said and "0003.png" in said
    assert "others stand for 1 damaged images" in said and "are not measured" in said


# ---- layouts


def test_ade20k_has_its_classes_from_one_on(run: Path, tmp_path: Path) -> None:
    for part, first in (("training", 0), ("validation", 50)):
        for kind in ("images", "annotations"):
            (tmp_path / "ade" / kind / part).mkdir(parents=True)
        for number in range(first, first + 3):
            image, mask = shape(number, 32)
            Image.fromarray(image).save(tmp_path / "ade" / "images" / part / f"{number}.jpg")
            grey = Image.fromarray(mask * np.uint8(50))  # 50, 100, 150 and 0, which is ignored
            grey.save(tmp_path / "ade" / "annotations" / part / f"{number}.png")
    place = ("--train", tmp_path / "ade", "--val", tmp_path / "ade")
    assert segmentation(run, *place, layout="ade20k") == 0
    row = rows(run)[0]
    assert row.protocol["classes"] == 150 and row.protocol["ignore"] == 0
    assert row.protocol["train"]["of"] == row.protocol["val"]["of"] == 3


def test_voc_takes_the_images_that_its_lists_name(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for number in range(6):
        image, mask = shape(number, 32)
        Image.fromarray(image).save(root / "JPEGImages" / f"a{number}.jpg")
        if number < 5:  # a picture without a mask, which no list names
            mask[:3] = 255
            save_mask(root / "SegmentationClass" / f"a{number}.png", mask)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a1\na0\na4\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("a2\na3\n")
    assert segmentation(run, "--train", root, "--val", root, layout="voc") == 0
    row = rows(run)[0]
    assert row.protocol["classes"] == 21 and row.protocol["ignore"] == 255
    assert (row.protocol["train"]["of"], row.protocol["val"]["of"]) == (3, 2)


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of so few bits for each pixel, which PIL does not write."""
    height, width = values.shape
    lines = b""
    for line in values:
        flat = "".join(f"{value:0{bits}b}" for value in line)
        flat += "0" * (-len(flat) % 8)
        lines += b"\0" + bytes(int(flat[i : i + 8], 2) for i in range(0, len(flat), 8))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),)
    parts += ((b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    whole = b"\x89PNG\r\n\x1a\n"
    for name, content in parts:
        crc = struct.pack(">I", zlib.crc32(name + content))
        whole += struct.pack(">I", len(content)) + name + content + crc
    return whole


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_masks_are_numbers_however_many_bits_they_have(bits: int) -> None:
    wanted = np.arange(21).reshape(3, 7) % min(1 << bits, 300)
    assert (masks.numbers(grey_png(wanted, bits)) == wanted).all()


# ---- mistakes


def replaced(run: Path, part: str, number: int, mask: np.ndarray) -> None:
    save_mask(run.parent / part / "masks" / f"{number:04d}.png", mask)


def other_size(run: Path) -> None:
    replaced(run, "val", 101, np.zeros((16, 24), np.uint8))


def no_class(run: Path) -> None:
    replaced(run, "val", 101, np.full((32, 32), 7, np.uint8))


def colours(run: Path) -> None:
    image = png(np.zeros((32, 32, 3), np.uint8))
    (run.parent / "train" / "masks" / "0002.png").write_bytes(image)


def no_mask(run: Path) -> None:
    for number in (1, 2):
        (run.parent / "train" / "masks" / f"{number:04d}.png").unlink()


def no_pixel(run: Path) -> None:
    for number in (100, 101, 102):
        replaced(run, "val", number, np.full((32, 32), 255, np.uint8))


def one_class(run: Path) -> None:
    (run.parent / "train" / "classes.txt").unlink()
    for number in range(6):
        replaced(run, "train", number, np.zeros((32, 32), np.uint8))


def other_names(run: Path) -> None:
    (run.parent / "val" / "classes.txt").write_text("noise\nsquare\ndisc\ncross\n")


def many_numbers(run: Path) -> None:
    (run.parent / "train" / "classes.txt").unlink()
    content = grey_png(np.full((32, 32), 60_000), 16)
    (run.parent / "train" / "masks" / "0002.png").write_bytes(content)


def same_images(run: Path) -> None:
    shutil.rmtree(run.parent / "val")
    (run.parent / "val").symlink_to(run.parent / "train")


def twice(run: Path) -> None:
    folder = run.parent / "train" / "images"
    shutil.copy(folder / "0001.png", folder / "0001.bmp")


@pytest.mark.parametrize(
    ("spoil", "status", "named"),
    [
        (other_size, 1, "0101.png is 24 x 16 pixels, its image 32 x 32; --resize-masks"),
        (no_class, 1, "0101.png: 1,024 pixels of 7, which is no class (0 to 3, 255 is ignored)"),
        (colours, 1, "0002.png: a palette or grey PNG is needed, this is PNG RGB"),
        (no_mask, 1, "2 of 6: 0001.png, 0002.png"),
        (no_pixel, 1, "no pixel of its masks has a class (255 is ignored)"),
        (one_class, 1, "has one class: there is nothing to separate"),
        (other_names, 1, "classes.txt differ"),
        (many_numbers, 1, "a mask has the number 60000"),
        (same_images, 2, "hold the same images"),
        (twice, 1, "1 masks of several images each: 0001.png"),
    ],
)
def test_what_cannot_be_learnt_or_measured_is_named(
    run: Path,
    spoil: Callable[[Path], None],
    status: int,
    named: str,
    capsys: pytest.CaptureFixture,
) -> None:
    spoil(run)
    assert segmentation(run) == status
    assert named in capsys.readouterr().err
    assert not rows(run)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--crop", 30), "--crop 30 is not a multiple of backbone.patch_size 8"),
        (("--stride", 40), "--stride 40 leaves pixels out between crops of"),
        (("--val", "nowhere"), "nowhere/images: no such folder"),
        (("--layout", "voc"), "ImageSets/Segmentation/train.txt cannot be read"),
    ],
)
def test_wrong_options_are_named(
    run: Path, words: tuple, named: str, capsys: pytest.CaptureFixture
) -> None:
    assert segmentation(run, *words) != 0
    assert named in capsys.readouterr().err


def test_masks_of_another_size_take_the_nearest_pixels(run: Path) -> None:
    other_size(run)
    assert segmentation(run, "--resize-masks") == 0
    assert rows(run)[0].protocol["resize_masks"] is True


def test_sizes_whose_features_are_not_finite_are_left_out(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    [weights] = run.rglob("teacher.safetensors")
    tensors = load_file(weights)
    tensors["backbone.embed.pos_embed"][..., 32:] = torch.nan
    save_file(tensors, weights)
    assert segmentation(run, "--sizes", "32x2,48x2") == 1
    assert "left out, as their features are not finite: 48x2" in capsys.readouterr().err
    assert {row.size for row in rows(run)} == {"32x2"}


def test_heads_of_other_classes_are_seen(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted mistake: masks whose classes are rolled by one are learnt, and score next to 0."""
    assert segmentation(run, "--steps", 20, "--learning-rates", "0.05") == 0
    learn = Training.learn

    def rolled(self: Training, step: int, blocks: list) -> None:
        moved = [(x, torch.where(m >= 0, (m + 1) % 4, m)) for x, m in blocks]
        learn(self, step, moved)

    monkeypatch.setattr(Training, "learn", rolled)
    assert segmentation(run, "--steps", 20, "--learning-rates", "0.05") == 0
    right, wrong = (row.value for row in rows(run) if row.name == "seg_aacc")
    assert right > 70 and wrong < 20

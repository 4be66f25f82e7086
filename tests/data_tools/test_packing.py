"""What becomes of files that are no plain photographs: said, counted, listed, or made smaller."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_tools import check, folder
from data_tools.packing import unique_keys
from poa_ds.data.image.opening import LARGEST
from poa_ds.data.image.pixels import pixels
from poa_ds.data.store.index import ShardFolder
from poa_ds.system.errors import UsageError
from tests.support.odd_images import PHOTO, encoded, jpeg_of, png_of, stack
from tests.support.shards import image, rejected, run, samples

TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
WIDE = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48) * 28
LOSSES = {
    "stack.tif": (stack("TIFF", 13), {"further pages are left out: 12"}),
    "moving.gif": (stack("GIF", 3), {"further pages are left out: 2"}),
    "moving.png": (stack("PNG", 2), {"further pages are left out: 1"}),
    "moving.webp": (stack("WEBP", 2), {"further pages are left out: 1"}),
    "stereo.jpg": (stack("MPO", 2), {"further images of a camera are left out"}),
    "clear.png": (encoded(PHOTO.convert("RGBA"), "PNG"), {"transparency is left out"}),
    "index.png": (encoded(PHOTO.convert("P"), "PNG", transparency=3), {"transparency is left out"}),
    "deep.png": (encoded(Image.fromarray(WIDE), "PNG"), {"16 bits of a colour become 8"}),
    "deep.tif": (encoded(Image.fromarray(WIDE), "TIFF"), {"16 bits of a colour become 8"}),
    "deep.ppm": (b"P6 1 1 65535\n" + bytes(6), {"16 bits of a colour become 8"}),
    "print.jpg": (encoded(PHOTO.convert("CMYK"), "JPEG"), {"CMYK becomes RGB without a profile"}),
    "turned.jpg": (encoded(PHOTO, "JPEG", exif=TURNED), {"the EXIF orientation is not applied"}),
    "other.jpg": (encoded(PHOTO, "JPEG", icc_profile=LAB), {"the colour profile is not applied"}),
    "usual.jpg": (encoded(PHOTO, "JPEG", icc_profile=SRGB), set()),
    "plain.png": (encoded(PHOTO, "PNG"), set()),
    "grey.bmp": (encoded(PHOTO.convert("L"), "BMP"), set()),
    "few.gif": (encoded(PHOTO.convert("P"), "GIF"), set()),
}


def written(root: Path, files: dict[str, bytes]) -> Path:
    (root / "in").mkdir()
    for name, content in files.items():
        (root / "in" / name).write_bytes(content)
    return root / "in"


def altered(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for line in (out / "altered.jsonl").read_text().splitlines():
        item = json.loads(line)
        found.setdefault(item["file"], set()).add(item["change"])
    return found


def test_whatever_is_lost_is_listed_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = written(tmp_path, {n: c for n, (c, _) in LOSSES.items()}), tmp_path / "out"
    run(folder, "--root", root, "--out", out)
    printed = capsys.readouterr().out.splitlines()
    assert rejected(out) == {} and altered(out) == {
        n: lost for n, (_, lost) in LOSSES.items() if lost
    }
    assert f"nothing rejected; not all is kept, see {out / 'altered.jsonl'}" in printed[0]
    assert printed[1:] == [
        "  3 x 16 bits of a colour become 8",
        "  1 x CMYK becomes RGB without a profile",
        "  1 x further images of a camera are left out",
        "  4 x further pages are left out",
        "  1 x the EXIF orientation is not applied",
        "  1 x the colour profile is not applied",
        "  2 x transparency is left out",
    ]
    run(folder, "--root", root, "--out", out)  # finished: told again
    assert capsys.readouterr().out.splitlines() == printed
    assert run(check, out) == 0  # what JPEGs and PNGs, which stay as they are, still lose
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  when they are read, of 1 images 16 bits of a colour become 8",
        "  when they are read, of 1 images CMYK becomes RGB without a profile",
        "  when they are read, of 1 images further images of a camera are left out",
        "  when they are read, of 1 images further pages are left out",
        "  when they are read, of 1 images the EXIF orientation is not applied",
        "  when they are read, of 1 images the colour profile is not applied",
        "  when they are read, of 2 images transparency is left out",
    ]
    (out / "altered.jsonl").unlink()  # as earlier versions left a folder
    run(folder, "--root", root, "--out", out)
    assert capsys.readouterr().out.endswith("nothing rejected\n")


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_every_page_can_be_an_image(tmp_path: Path, kind: str) -> None:
    """Pages stay together, and their keys are nobody else's."""
    files = {"s.tif": stack(kind, 13), "s--00002.png": encoded(PHOTO, "PNG"), "x.png": png_of(9, 9)}
    root, out = written(tmp_path, files), tmp_path / "out"
    run(folder, "--root", root, "--out", out, "--pages", "all", "--images-per-shard", 5)
    shards = ShardFolder.open(out)
    found = samples(shards)
    keys = ["s", *(f"s--{n:05d}" for n in range(2, 14))]
    assert found.keys() == {*keys, "s-_00002"} and altered(out) == {}
    for number, key in enumerate(keys, start=1):
        apart = pixels(found[key][0])[0].astype(int) - image(number)
        assert abs(apart).mean() < (8 if kind == "GIF" else 1e-9)
    assert len({shards.shard(n) for n in range(14) if shards.key(n) in keys}) == 1
    assert run(check, out) == 0


def test_keys_do_not_end_as_those_of_further_pages_do() -> None:
    assert unique_keys(["a--00002", "a--12", "a-_00002"]) == ["a-_00002", "a--12", "a-_00002_2"]


def test_a_jpeg_above_the_limit_needs_a_short_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = Image.fromarray(image(0, 40, 36)).convert("L").resize((16_000, 12_000))
    files = {"large.jpg": encoded(photo, "JPEG"), "large.png": png_of(20_000, 10_000)}
    assert photo.width * photo.height > LARGEST
    root, out = written(tmp_path, files | {"a.png": encoded(PHOTO, "PNG")}), tmp_path / "out"
    run(folder, "--root", root, "--out", out / "1")
    assert rejected(out / "1").keys() == {"large.jpg", "large.png"}
    assert "2 x too large" in capsys.readouterr().out
    run(folder, "--root", root, "--out", out / "2", "--short-side", 60)
    assert rejected(out / "2").keys() == {"large.png"}
    found = pixels(samples(ShardFolder.open(out / "2"))["large"][0])[0]
    assert found.shape == (60, 80, 3)
    expected = np.asarray(Image.fromarray(image(0, 40, 36)).convert("L").resize((80, 60)))
    assert abs(found.astype(int) - expected[..., None]).mean() < 3


def test_more_pixels_can_be_allowed_where_images_are_made_smaller(tmp_path: Path) -> None:
    files = {"wide.png": encoded(Image.new("RGB", (400, 300)), "PNG"), "a.png": png_of(10, 10)}
    files["b.png"] = encoded(PHOTO, "PNG")
    root, out = written(tmp_path, files), tmp_path / "out"
    run(folder, "--root", root, "--out", out / "1", "--max-pixels", 9999)
    assert "too large: 400 x 300 pixels, of 9999 at most" in rejected(out / "1")["wide.png"]
    words = ("--root", root, "--max-pixels", LARGEST + 1)
    with pytest.raises(UsageError, match="needs --short-side"):
        run(folder, *words, "--out", out / "2")
    run(folder, *words, "--out", out / "2", "--short-side", 20)
    assert "wide" in samples(ShardFolder.open(out / "2"))


def test_a_bomb_among_the_files_is_rejected(tmp_path: Path) -> None:
    files = {"bomb.jpg": jpeg_of(25_000, 25_000), "a.png": encoded(PHOTO, "PNG")}
    root, out = written(tmp_path, files), tmp_path / "out"
    run(folder, "--root", root, "--out", out)
    assert rejected(out)["bomb.jpg"].startswith("too large: 25000 x 25000 pixels")


def test_what_file_managers_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    for name in ("ant/1.png", "ant/._1.png", "ant/.DS_Store", "__MACOSX/ant/._1.png", "bee/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(encoded(PHOTO, "PNG"))
    (tmp_path / "in" / "bee" / "Thumbs.db").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").touch()  # a folder that was looked at is still empty
    run(folder, "--root", tmp_path / "in", "--out", out)
    assert ShardFolder.open(out).classes == ("ant", "bee") and len(ShardFolder.open(out)) == 2
    assert rejected(out) == {
        "ant/._1.png": "hidden file",
        "ant/.DS_Store": "hidden file",
        "__MACOSX/ant/._1.png": "left by a file manager",
        "bee/Thumbs.db": "left by a file manager",
    }
    (out / "._shard-000000.tar").write_bytes(b"Bud1")
    assert run(check, out) == 0 and (out / ".DS_Store").exists()


@pytest.mark.parametrize("names", [("train", "val"), ("train",), ("training", "test")])
def test_splits_that_become_classes_are_said(
    tmp_path: Path, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (*names, "cat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(encoded(PHOTO, "PNG"))
    run(folder, "--root", tmp_path / "in", "--out", tmp_path / "1")
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "in" / "cat" / "1.png").unlink()
    (tmp_path / "in" / "cat").rmdir()
    run(folder, "--root", tmp_path / "in", "--out", tmp_path / "2")
    said = f"holds {' and '.join(sorted(names))}: these become the classes"
    assert said in capsys.readouterr().err


def test_pipes_and_devices_among_images_are_rejected(tmp_path: Path) -> None:
    root = written(tmp_path, {"a.png": encoded(PHOTO, "PNG")})
    os.mkfifo(root / "pipe.jpg")
    (root / "device.jpg").symlink_to("/dev/zero")
    run(folder, "--root", root, "--out", tmp_path / "out")
    assert rejected(tmp_path / "out") == dict.fromkeys(
        ("pipe.jpg", "device.jpg"), "not a regular file"
    )

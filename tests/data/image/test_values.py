"""Numbers of images: what range, percentiles and pages make of them, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.values import Values, as_they_are, check_header
from poa_ds.recipe.tree import Data
from tests.support import tiffs

RANGE = (0.0, 4095.0)
FIVE = Values(5, RANGE)


def file(image: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, image, **options)
    return out.getvalue()


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


PLANES = {"photometric": "minisblack", "planarconfig": "separate"}
WAYS = {
    "planes": (lambda x: file(x, **PLANES), "first"),
    "pixels": (
        lambda x: file(np.moveaxis(x, 0, -1), photometric="minisblack", planarconfig="contig"),
        "first",
    ),
    "deflated": (lambda x: file(x, compression="zlib", **PLANES), "first"),
    "tiles": (lambda x: file(x, tile=(16, 16), **PLANES), "first"),
    "big end": (lambda x: file(x, byteorder=">", **PLANES), "first"),
    "pages": (lambda x: file(x, photometric="minisblack"), "channels"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers_however_the_file_holds_them(way: str) -> None:
    image = tiffs.numbers(3)
    written, pages = WAYS[way]
    found = Values(5, RANGE, pages=pages).read(written(image))
    assert found.dtype == np.float32 and found.shape == image.shape
    np.testing.assert_allclose(found, image / 4095 * 255, rtol=1e-6, atol=1e-4)
    check_header(written(image))


def test_what_lies_beyond_the_range_is_cut_off() -> None:
    image = np.array([[[-3.0, 0.5], [2.0, 9.0]]], np.float32)
    found = Values(1, (0.0, 2.0)).read(file(image[0]))
    assert found.tolist() == [[[0.0, 63.75], [255.0, 255.0]]]


def test_percentiles_are_those_of_each_channel() -> None:
    image = tiffs.numbers(1)
    found = Values(5, percentiles=(5, 95)).read(file(image, **PLANES))
    for channel, numbers in zip(found, image.astype(float), strict=True):
        inside = np.sort(numbers.ravel())
        low, high = (
            np.interp(p * (inside.size - 1), range(inside.size), inside) for p in (0.05, 0.95)
        )
        np.testing.assert_allclose(
            channel, np.clip((numbers - low) / (high - low), 0, 1) * 255, rtol=1e-5, atol=1e-3
        )


def test_grey_and_bytes_need_no_range_and_sixteen_bits_of_grey_are_kept() -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(Values(1).read(png(grey))[0], grey)
    fine = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    found = Values(1, (0, 65535)).read(png(fine))[0]
    np.testing.assert_allclose(found, fine / 257, rtol=1e-6)


def test_a_constant_channel_is_black_and_not_infinite() -> None:
    assert not Values(1, percentiles=(1, 99)).read(file(np.full((8, 8), 7, np.uint16))).any()


REFUSED = [
    (lambda: file(tiffs.numbers(0), **PLANES), Values(4, RANGE), "5 channels, data.channels is 4"),
    (lambda: file(tiffs.numbers(0), **PLANES), Values(5), r"uint16 numbers.*data\.range=\[LOW"),
    (lambda: file(tiffs.numbers(0), **PLANES)[:-900], FIVE, "undecodable TIFF"),
    (lambda: file(np.full((8, 8), np.nan, np.float32)), Values(1, (0, 1)), "not finite"),
    (lambda: file(np.ones((8, 8), np.complex64)), Values(1, (0, 1)), "a page of complex64"),
    (lambda: file(np.zeros((8, 8), np.uint8), photometric="miniswhite"), Values(1), "MINISWHITE"),
    (
        lambda: file(
            np.zeros((8, 8), np.uint8), photometric="palette", colormap=np.zeros((3, 256), "u2")
        ),
        Values(1),
        "PALETTE",
    ),
    (lambda: b"II*\0 and nothing", FIVE, "undecodable TIFF"),
    (lambda: b"GIF89a", Values(1), "undecodable image"),
    (lambda: b"words", Values(1), "not an image"),
]


@pytest.mark.parametrize(("content", "values", "cause"), REFUSED)
def test_what_cannot_be_read_says_why(content, values: Values, cause: str) -> None:
    with pytest.raises(Undecodable, match=cause):
        values.read(content())


def test_pages_of_several_sizes_are_no_channels(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "x.tif") as out:
        out.write(np.zeros((8, 8), np.uint8))
        out.write(np.zeros((8, 9), np.uint8))
    content = (tmp_path / "x.tif").read_bytes()
    with pytest.raises(Undecodable, match="differ in size"):
        Values(2, pages="channels").read(content)
    assert Values(1).read(content).shape == (1, 8, 8)


def test_ordinary_images_are_not_measurements() -> None:
    assert Values.of(Data()) is None
    assert Values.of(Data(channels=1)) == Values(1)
    assert Values.of(Data(range=(0, 65535))) == Values(3, (0, 65535))


@pytest.mark.parametrize("options", [{}, PLANES], ids=["grey", "channels"])
def test_every_page_of_a_stack_is_a_file_of_the_same_numbers(options: dict) -> None:
    pages = [tiffs.numbers(n) if options else tiffs.numbers(n)[0] for n in range(3)]
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as stack:
        for page in pages:
            stack.write(page, **({"photometric": "minisblack"} | options))
    found = [*as_they_are(out.getvalue(), every_page=True)]
    assert [ending for ending, _ in found] == ["tif"] * 3
    values = Values(5 if options else 1, RANGE)
    for (_, content), page in zip(found, pages, strict=True):
        wanted = np.atleast_3d(page if options else page[None]) / 4095 * 255
        np.testing.assert_allclose(values.read(content), wanted, rtol=1e-6, atol=1e-4)
    assert [*as_they_are(out.getvalue())] == [("tif", out.getvalue())]
    assert found == [*as_they_are(out.getvalue(), every_page=True)]  # the same bytes again

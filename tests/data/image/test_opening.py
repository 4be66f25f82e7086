"""Which files are opened as images, and how large they may be."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from poa_ds.data.image.decoders import decoder, installed
from poa_ds.data.image.opening import (
    LARGEST,
    NO_IMAGE,
    SCALES,
    Undecodable,
    jpeg_frame,
    kept_bytes,
    opened,
)
from poa_ds.data.image.pixels import pixels, rgb
from poa_ds.data.image.views import decode
from tests.support.odd_images import (
    BOMBS,
    FOREIGN,
    PHOTO,
    encoded,
    jpeg_of,
    stack,
    tiff_of,
    tiled_tiff,
)
from tests.support.published import CROPS
from tests.support.shards import image

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
WAYS = {"tools": pixels, "evaluation": decode} | {
    f"training, {name}": decoder(name, CROPS) for name in installed()
}
READ = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_no_other_decoder_is_asked(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS starts Ghostscript, whatever its name is."""
    monkeypatch.setattr(subprocess, "Popen", lambda *words, **_: pytest.fail(f"starts {words}"))
    with pytest.raises(Undecodable) as caught:
        WAYS[way](FOREIGN[kind]())
    assert str(caught.value) == NO_IMAGE


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", READ)
def test_the_formats_of_the_documents_are_read(kind: str, way: str) -> None:
    found = WAYS[way](encoded(PHOTO, kind))
    assert found is not None and NO_IMAGE.count({"WEBP": "WebP"}.get(kind, kind)) == 1


def test_the_documents_name_the_formats_and_the_limit() -> None:
    root = Path(__file__).parents[3]
    text = " ".join((root / "docs/howto/own_images.md").read_text().split())
    assert "JPEG, PNG, WebP, GIF, BMP, TIFF and PPM" in text and f"{LARGEST:,} pixels" in text


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_by_its_header(kind: str, way: str) -> None:
    """25,000 x 25,000 in 3 kB took 2.9 GB and 33 s."""
    side = 16383 if kind == "WebP" else 25_000  # no WebP is larger
    content = BOMBS[kind](side, side)
    assert len(content) < 8000
    begun, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Undecodable, match=f"too large: {side} x {side}|exceeds limit"):
        WAYS[way](content)
    assert time.process_time() - begun < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # KiB


def test_a_tile_may_not_be_larger_than_an_image_either() -> None:
    """A TIFF of few pixels in one enormous tile."""
    assert not pixels(tiled_tiff(40, 48))[0].any()
    with pytest.raises(Undecodable, match="too large: 32000 x 32000"):
        pixels(tiled_tiff(40, 32_000))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_jpeg_that_announces_more_than_it_can_hold_is_refused(
    way: str, progressive: bool
) -> None:
    """Below the limit a decoder would make up 169 megapixels, in half a gigabyte."""
    content = jpeg_of(13_000, 13_000, progressive=progressive)
    begun = time.process_time()
    with pytest.raises(Undecodable, match=rf"cut short: {len(content)} bytes cannot hold 13000 x"):
        WAYS[way](content)
    assert time.process_time() - begun < 0.5
    for mode in ("L", "RGB", "CMYK"):  # the emptiest images that there are
        for subsampling in (0, 2):
            plain = Image.new(mode, (1600, 1200))
            options = {"optimize": True, "quality": 1, "progressive": progressive}
            file = encoded(plain, "JPEG", subsampling=subsampling, **options)
            assert WAYS[way](file) is not None


def test_the_largest_image_that_is_opened() -> None:
    side = int(LARGEST**0.5)
    for content in (jpeg_of(side, side).ljust(side * side // 500, b"\0"), tiff_of(side, side)):
        with opened(content) as file:
            assert file.size == (side, side)
    with pytest.raises(Undecodable, match="too large"), opened(jpeg_of(side + 1, side + 1)):
        pass


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 2},
        {"comment": b"\xff\xc0\0\x11\x08\0\1\0\1\3"},  # a frame that is none
        {"exif": b"Exif\0\0" + bytes(500)},
        {"restart_marker_blocks": 1},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_header_is_read_as_libjpeg_reads_it(mode: str, options: dict) -> None:
    photo = PHOTO.resize((123, 77)).convert(mode)
    whole = encoded(photo, "JPEG", **options)
    start = whole[:2]
    for content in (whole, start + b"\xff\xff\xff\xfe\0\3x" + whole[2:], start + b"xx" + whole[2:]):
        assert jpeg_frame(content)[1:] == photo.size
        assert (kept_bytes(content) > 0) == bool(options.get("progressive"))


@pytest.mark.parametrize(("subsampling", "share"), [(0, 3), (1, 2), (2, 1.5)])
def test_a_progressive_jpeg_keeps_all_its_coefficients(subsampling: int, share: float) -> None:
    photo = PHOTO.resize((124, 76))
    content = encoded(photo, "JPEG", progressive=True, subsampling=subsampling)
    assert kept_bytes(content) == 2 * share * 124 * 76


@pytest.mark.parametrize("length", range(2, 700, 31))
def test_a_cut_header_is_none(length: int) -> None:
    content = encoded(PHOTO, "JPEG")
    assert length > content.index(b"\xff\xc0") or jpeg_frame(content[:length]) is None


def test_a_large_jpeg_is_decoded_at_a_reduced_scale() -> None:
    photo = Image.fromarray(image(2, 640, 400))
    content, limit = encoded(photo, "JPEG", quality=95), 100_000
    with pytest.raises(Undecodable, match="too large: 400 x 640 pixels, of 100000 at most"):
        with opened(content, largest=limit):
            pass
    for short_side, expected in ((40, (50, 80)), (80, (100, 160)), (150, (200, 320))):
        with opened(content, short_side=short_side, largest=limit) as file:
            assert file.size == expected
            small = rgb(file).astype(int)
        whole = photo.resize(expected, Image.Resampling.BOX)
        assert abs(small - rgb(whole)).mean() < 2
    with pytest.raises(Undecodable, match="too large"):  # at half the scale it is too small
        with opened(content, short_side=200, largest=limit):
            pass
    with opened(content, short_side=40) as file:  # within the limit nothing is reduced
        assert file.size == (400, 640)


def test_a_progressive_jpeg_costs_memory_at_any_scale() -> None:
    with pytest.raises(Undecodable, match=r"progressive JPEG of 25000 x 25000 pixels takes"):
        with opened(jpeg_of(25_000, 25_000, progressive=True), short_side=100):
            pass
    content = jpeg_of(25_000, 25_000).ljust(2 << 20, b"\0")
    with opened(content, short_side=100) as file:
        assert file.size == (3125, 3125)
    assert 8 == max(SCALES)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_pages_the_first_is_read(kind: str) -> None:
    found = decode(stack(kind, 13)).permute(1, 2, 0)
    first = torch.from_numpy(image(1)).int()
    assert (found.int() - first).abs().float().mean() < 8  # GIF has 256 colours


def test_decoding_starts_no_program_and_imports_no_other_decoder() -> None:
    """In a process of its own: what PIL would load by itself shows."""
    code = (
        "import sys; from poa_ds.data.image.pixels import pixels\n"
        "from poa_ds.system.errors import UserError\n"
        "try: pixels(b'%!PS-Adobe-3.0 EPSF-3.0')\n"
        "except UserError as error: print(error)\n"
        "print(sorted(n for n in sys.modules if n.startswith('PIL.') and 'Eps' in n))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [NO_IMAGE, "[]"]

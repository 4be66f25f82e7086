"""Decoding against PIL, crops against torchvision."""

import io
import random

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from poa_ds.data.image.opening import Undecodable
from poa_ds.data.image.pixels import pixels
from poa_ds.data.image.views import CropSpec, center_view, decode, random_box, views
from tests.support.shards import image


def encoded(photo: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return file.getvalue()


def by_pil(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


# torchvision means to hand its decoders on to TorchCodec; today they are 1.6 times as fast as PIL
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
PHOTO = Image.fromarray(image(1))
LOSSLESS = {
    "png": encoded(PHOTO, "PNG"),
    "grey png": encoded(PHOTO.convert("L"), "PNG"),
    "palette png": encoded(PHOTO.convert("P"), "PNG"),
    "transparent png": encoded(PHOTO.convert("RGBA"), "PNG"),
    "two-colour png": encoded(PHOTO.convert("1"), "PNG"),
    "webp": encoded(PHOTO, "WEBP", lossless=True),
    "bmp": encoded(PHOTO, "BMP"),
    "gif": encoded(PHOTO, "GIF"),
    "tiff": encoded(PHOTO, "TIFF"),
}
JPEG = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "turned jpeg": encoded(
        PHOTO,
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0",
    ),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_pixels_of_pil(name: str) -> None:
    decoded = decode(LOSSLESS[name])
    assert decoded.dtype == torch.uint8
    assert np.array_equal(decoded.permute(1, 2, 0), by_pil(LOSSLESS[name]))


@pytest.mark.parametrize("name", JPEG)
def test_jpeg_gives_the_pixels_of_pil(name: str) -> None:
    difference = decode(JPEG[name]).permute(1, 2, 0).numpy() - by_pil(JPEG[name]).astype(int)
    assert np.abs(difference).max() <= 4  # two builds of the library round differently


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_become_eight(kind: str) -> None:
    wide = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    assert decode(encoded(wide, kind)).tolist() == [[[0, 0, 1, 255]]] * 3


def test_numbers_without_a_known_white_are_refused() -> None:
    """PIL would make everything above 255 white."""
    grey = np.array([[0, 255, 256, 65535]])
    for kind in (np.int32, np.float32):
        with pytest.raises(Undecodable, match="nothing says which numbers are white"):
            decode(encoded(Image.fromarray(grey.astype(kind)), "TIFF"))
    assert decode(b"P5 2 1 65535\n\x01\x00\xff\xff").tolist() == [[[1, 255]]] * 3


@pytest.mark.parametrize("name", ["png", "jpeg"])
def test_a_flipped_bit_never_ends_the_process(name: str) -> None:
    """torchvision's decode_png dies of most of them; many are seen, none of a JPEG's pixels."""
    whole, rng, said = (JPEG | LOSSLESS)[name], random.Random(0), 0
    for _ in range(40):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        try:
            assert decode(bytes(content)).dtype == torch.uint8
        except Undecodable:
            said += 1
    assert said > 30 or name != "png"


@pytest.mark.parametrize("kind", ["AVIF", "DDS"])
def test_whatever_pil_raises_is_an_undecodable_image(kind: str) -> None:
    """RuntimeError and NotImplementedError, among others."""
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    whole = encoded(PHOTO.resize((16, 16)), kind)
    for place in range(4, min(len(whole), 160)):
        content = bytearray(whole)
        content[place] ^= 255
        try:
            pixels(bytes(content))
        except Undecodable:
            pass


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xd8", b"\x89PNG", bytes(100)])
def test_what_is_no_image_says_so(content: bytes) -> None:
    with pytest.raises(Undecodable, match=r"empty file|not an image|undecodable image"):
        decode(content)


@pytest.mark.parametrize("name", ["jpeg", "png", "cmyk jpeg", "progressive jpeg"])
def test_a_cut_image_is_never_taken_for_a_whole_one(name: str) -> None:
    content = (JPEG | LOSSLESS)[name]
    for length in range(2, len(content) - 20, 97):
        with pytest.raises(Undecodable):
            decode(content[:length])


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.sampled_from([(0.05, 0.32), (0.32, 1.0)]),
    seed=st.integers(0, 1000),
)
def test_boxes_lie_inside_the_image(
    height: int, width: int, scale: tuple[float, float], seed: int
) -> None:
    top, left, h, w = random_box(height, width, scale, random.Random(seed))
    assert 0 <= top <= top + h <= height and 0 <= left <= left + w <= width
    assert h > 0 and w > 0


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    torch.manual_seed(0)
    rng, shape, scale = random.Random(0), (3, 90, 120), (0.32, 1.0)
    photo = torch.empty(shape)
    theirs = torch.tensor(
        [
            torchvision.transforms.RandomResizedCrop.get_params(photo, scale, (3 / 4, 4 / 3))
            for _ in range(4000)
        ]
    ).float()
    own = torch.tensor([random_box(90, 120, scale, rng) for _ in range(4000)]).float()
    # two means of 4000 draws: five standard errors
    error = 5 * (2 * theirs.var(0) / 4000).sqrt()
    assert ((own.mean(0) - theirs.mean(0)).abs() < error).all()
    assert torch.allclose(own.std(0), theirs.std(0), rtol=0.08)


def test_the_box_of_a_long_image_is_its_middle() -> None:
    assert random_box(20, 2000, (0.9, 1.0), random.Random(0)) == (0, 986, 20, 27)
    assert random_box(2000, 21, (0.9, 1.0), random.Random(0)) == (986, 0, 28, 21)
    assert random_box(1, 1, (0.05, 0.32), random.Random(0)) == (0, 0, 1, 1)


def test_crops_are_those_of_torchvision() -> None:
    photo, spec = decode(LOSSLESS["png"]), CropSpec(32, (0.32, 1.0), 3, 16, (0.05, 0.32), flip=0.5)
    found = views(photo, spec, random.Random(7))
    rng = random.Random(7)
    for crops, size, scale in (
        (found.global_crops, 32, (0.32, 1.0)),
        (found.local_crops, 16, (0.05, 0.32)),
    ):
        assert crops.dtype == torch.uint8
        for crop in crops:
            box = random_box(40, 36, scale, rng)
            expected = F.resized_crop(
                photo, *box, [size, size], InterpolationMode.BICUBIC, antialias=True
            )
            assert torch.equal(crop, F.hflip(expected) if rng.random() < 0.5 else expected)
    assert len(found.global_crops) == 2 and len(found.local_crops) == 3


def test_flips_happen_as_often_as_asked() -> None:
    photo = torch.arange(64).expand(3, 64, 64).to(torch.uint8)  # brighter to the right
    for flip in (0.0, 0.5, 1.0):
        rng, spec = random.Random(1), CropSpec(8, (0.5, 1.0), 8, 8, (0.5, 1.0), flip=flip)
        crops = torch.cat([v for _ in range(40) for v in vars(views(photo, spec, rng)).values()])
        share = (crops[:, 0, 0, 0] > crops[:, 0, 0, -1]).float().mean()
        assert abs(share - flip) <= (0.125 if flip == 0.5 else 0)  # five standard errors of 400


def test_no_local_crops() -> None:
    spec = CropSpec(32, (0.32, 1.0), 0, 16, (0.05, 0.32), 0.5)
    assert views(decode(LOSSLESS["png"]), spec, random.Random(0)).local_crops.shape == (
        0,
        3,
        16,
        16,
    )


@pytest.mark.parametrize(
    ("height", "width"), [(1, 30), (15, 4), (300, 400), (400, 300), (256, 256), (50, 90), (3, 3)]
)
def test_the_centre_view_is_that_of_torchvision(height: int, width: int) -> None:
    photo = Image.fromarray(image(0, height, width))
    theirs = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(256, torchvision.transforms.InterpolationMode.BICUBIC),
            torchvision.transforms.CenterCrop(224),
            torchvision.transforms.PILToTensor(),
        ]
    )(photo)
    own = center_view(decode(encoded(photo, "PNG")), 256, 224)
    assert own.shape == (3, 224, 224) and own.dtype == torch.uint8
    # both round to 8 bits after each of the two directions, with weights of their own precision
    assert (own.int() - theirs.int()).abs().max() <= 2


@pytest.mark.parametrize(("height", "width"), [(1, 20_000), (20_001, 3), (2, 9001), (7, 7 * 18)])
def test_a_long_image_is_cut_before_it_is_enlarged(height: int, width: int) -> None:
    """1 x 20,000 asked for 12 GiB: 256 x 5,120,000 as float."""
    rng = np.random.default_rng(0)
    photo = torch.from_numpy(rng.integers(0, 256, (3, height, width), np.uint8))
    with torch.no_grad():
        own = center_view(photo, 256, 224)
    short = min(height, width)
    begin = [max(0, side // 2 - 30 * short) // 2 * 2 for side in (height, width)]
    middle = photo[:, *(slice(b, side - b) for b, side in zip(begin, (height, width), strict=True))]
    whole = F.resize(middle, [256], InterpolationMode.BICUBIC, antialias=True)
    whole = F.center_crop(whole, [224, 224])
    assert own.shape == (3, 224, 224)
    # the scale of a length is rounded to whole pixels: a difference of some thousandths of a pixel
    assert (own.int() - whole.int()).abs().float().mean() < 1

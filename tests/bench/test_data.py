"""`poa-ds bench data`: its figures are of the work that it names."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from poa_ds.bench import data as bench_data
from poa_ds.bench.data import Figures
from poa_ds.bench.loose_reads import reads
from poa_ds.bench.published_pipeline import published
from poa_ds.data.image.decoders import installed
from poa_ds.data.image.pixels import png
from poa_ds.data.image.views import CropSpec
from poa_ds.data.store.loose import LooseFolder
from poa_ds.data.stream import stream_images
from poa_ds.system.errors import UsageError
from tests.support import tiffs
from tests.support.published import COLOURS
from tests.support.shards import image, make_shards, run

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
SMALL = ("crops.global_size=32", "crops.local_size=16", "crops.local_count=2", "evaluation.crop=32")


def test_every_part_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "train")
    record = tmp_path / "figures.json"
    options = ("--images", 16, "--workers", 1, "--json", record)
    assert run(bench_data, *options, f"data.train={tmp_path / 'train'}", *SMALL) == 0
    out = capsys.readouterr().out
    found = json.loads(record.read_text())
    assert list(found["parts"]) == ["read", "decode", "crop", "collate", "photometric"]
    assert all(value > 0 for value in found["parts"].values())
    assert found["rates"].keys() == {"1"} and found["rates"]["1"] > 0
    assert list(found["decoders"]) == list(installed())
    assert all(value > 0 for value in found["decoders"].values())
    assert found["stream"] > 0 and found["published"] > found["parts"]["decode"]
    for words in ("4,000 images/s need", "webdataset's streaming reader", "published pipeline"):
        assert words in out


def test_measurements_are_measured_without_the_published_pipeline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place, record = tiffs.tree(tmp_path / "tiffs", 8), tmp_path / "figures.json"
    words = ["data.channels=5", "data.range=[0,4095]"]
    words += [f"augmentation.{key}=0" for key in ("saturation", "hue", "gray")]
    words += [f"augmentation.{key}=[{','.join(['0.5'] * 5)}]" for key in ("mean", "std")]
    options = ("--images", 8, "--workers", 1, "--json", record)
    assert run(bench_data, *options, f"data.train={place}", *SMALL, *words) == 0
    found, out = json.loads(record.read_text()), capsys.readouterr().out
    assert found["published"] is None and list(found["decoders"]) == ["torchvision"]
    assert "4,000 images/s need" in out and "published pipeline" not in out


def test_the_workers_that_a_rate_needs_are_rounded_up() -> None:
    parts = {"read": 0.1, "decode": 1.0, "crop": 2.0, "collate": 0.9, "photometric": 50.0}
    figures = Figures(1, 1.0, parts, 30.0, 0.1, {}, {}, {})
    assert [figures.workers_for(rate) for rate in (1, 250, 251, 4000)] == [1, 1, 2, 16]


def test_the_published_pipeline_makes_the_same_crops() -> None:
    """Without anything random but the crop: the shapes, and one crop of the whole image."""
    crops = CropSpec(24, (1.0, 1.0), 3, 8, (0.2, 0.3), flip=0.0)
    colours = replace(COLOURS, jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)
    found = published(crops, colours)(png(image(0, 24, 24)))
    assert [tuple(crop.shape) for crop in found] == [(3, 24, 24)] * 2 + [(3, 8, 8)] * 3
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (colours.mean, colours.std))
    whole = (torch.from_numpy(image(0, 24, 24)).permute(2, 0, 1) / 255 - mean) / std
    assert torch.allclose(found[0], whole, atol=1e-5)


def test_the_published_pipeline_blurs_and_solarizes_each_kind_of_crop_as_asked() -> None:
    crops = CropSpec(24, (1.0, 1.0), 1, 24, (1.0, 1.0), flip=0.0)
    content = png(image(0, 24, 24))

    def distances(**changed: object) -> list[bool]:
        plain = replace(COLOURS, jitter=0.0, grey=0.0, blur=(0.0, 0.0, 0.0), solarize=0.0)
        colours = replace(plain, **changed)
        first, second = (published(crops, kind)(content) for kind in (plain, colours))
        return [not torch.equal(a, b) for a, b in zip(first, second, strict=True)]

    assert distances() == [False, False, False]
    assert distances(blur=(1.0, 0.0, 0.0), blur_sigma=(1.5, 2.0)) == [True, False, False]
    assert distances(blur=(0.0, 0.0, 1.0), blur_sigma=(1.5, 2.0)) == [False, False, True]
    assert distances(solarize=1.0) == [False, True, False]


def test_the_stream_gives_every_image_of_the_tars(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "train")
    paths = [str(tmp_path / "train" / shard.file) for shard in shards.manifest.shards]
    expected = [shards.read(sample) for sample in range(len(shards))]
    assert list(stream_images(paths)) == expected


@pytest.mark.parametrize("words", [("--workers", "0"), ("--workers", "1,x"), ("--images", 0)])
def test_wrong_numbers_are_refused(words: tuple, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(bench_data, *words)
    assert f"argument {words[0]}: '" in capsys.readouterr().err


def test_it_wants_images() -> None:
    with pytest.raises(UsageError, match=r"data\.train is empty"):
        run(bench_data)


def test_files_are_measured_beside_shards_and_alone(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "train", 12)
    contents = [shards.read(row) for row in range(12)]
    found = reads(shards, range(12), contents)
    kinds = ("from memory", "from the disk")
    assert list(found) == [f"{name}, {kind}" for name in ("shards", "files") for kind in kinds]
    assert all(value > 0 for value in found.values())
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(contents[0])
    assert list(reads(LooseFolder.at(tmp_path / "mine", None), [0], contents[:1])) == [
        f"files, {kind}" for kind in kinds
    ]

"""Every damage of a data set is noticed and named; the table in docs/damage.md is made here.

POA_WRITE_DOCS=1 writes the table anew.
"""

import itertools
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from data_tools import check
from data_tools.shard import write
from data_tools.sources import Sample
from poa_ds.data.image.opening import FORMATS, LARGEST
from poa_ds.data.image.pixels import png
from poa_ds.data.loader import slot_batches
from poa_ds.data.places import open_folder
from poa_ds.data.store import fetch, remote
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.remote import RemoteFolder
from poa_ds.recipe.tree import Data
from poa_ds.system.errors import UserError
from tests.data.test_loader import SPEC
from tests.support.damage_rows import image_lines, tar_lines
from tests.support.local_server import Server, serving
from tests.support.shards import image, make_shards, options, run

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
DOCUMENT = Path(__file__).parents[2] / "docs" / "damage.md"
SHARD = "shard-000001.tar"
STEPS = 8  # three epochs of the 30 images
HEAD = """# Damaged data, and what happens

Written by `tests/data/test_damage.py`, which damages shards in these ways and records what the
loader (`data.on_error=raise`) and `poa-ds check` say. DIR is the folder, URL its address, N a
number. With `data.on_error=replace` a damaged *image* is replaced by another one, counted, and
listed in `bad_samples.jsonl`, until there are more than `data.max_bad_fraction`; an evaluation
replaces it and says so. A missing or cut *file* and an address that cannot be read always stop the
run.

"""

IMAGES_HEAD = [
    "## Images",
    "",
    f"Read are {', '.join(FORMATS)}, by what stands in the file and not by its name; no other",
    f"decoder is asked, and none starts a program. No image has more than {LARGEST:,} pixels: what",
    "the header announces decides, before anything is decoded. `poa-ds shard --short-side` decodes",
    "larger JPEGs at a reduced scale, and `--max-pixels` raises the limit there for other formats.",
    "",
]
TARS_HEAD = ["## Tars of other tools", ""]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def inside(folder: Path, part: int = 20) -> int:
    """A byte of the third image of SHARD."""
    shards = ShardFolder.load(folder)
    return int(shards.index[shards.starts[1] + 2]["offset"]) + part


def cut(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])


def swap(folder: Path) -> None:
    first, second = folder / "shard-000000.tar", folder / SHARD
    first.rename(folder / "x")
    second.rename(first)
    (folder / "x").rename(second)


def undecodable(folder: Path) -> None:
    """Another tool wrote half an image and an index that fits."""
    for path in folder.iterdir():
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_tools.packing.usable", lambda content, _: [("png", content, ())])
        images = [png(image(n))[: 400 if n == 7 else None] for n in range(30)]
        found = [Sample(f"image_{n:03d}", "", content) for n, content in enumerate(images)]
        args = options()
        write(folder, found, classes=(), rejected=(), tool="x", args=args, source="x")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


LOCAL: dict[str, Callable[[Path], object]] = {
    "a bit of an image is flipped": lambda d: flip(d / SHARD, inside(d)),
    "a bit of a tar header is flipped": lambda d: flip(d / SHARD, inside(d, -500)),
    "a bit between two members is flipped": lambda d: flip(d / SHARD, 512 + 2000 + 1500),
    "a shard is cut inside an image": lambda d: cut(d / SHARD, inside(d)),
    "a shard is cut between two members": lambda d: cut(d / SHARD, inside(d, -512)),
    "a shard has grown": lambda d: (d / SHARD).write_bytes((d / SHARD).read_bytes() + b"\0"),
    "a shard is empty": lambda d: cut(d / SHARD, 0),
    "a shard is missing": lambda d: (d / SHARD).unlink(),
    "two shards of the same size are swapped": swap,
    "a shard is that of another data set": lambda d: (
        make_shards(d / "other", seed=1) and (d / "other" / SHARD).replace(d / SHARD)
    ),
    "a bit of the index is flipped": lambda d: flip(d / "index.npy", 300),
    "the index is missing": lambda d: (d / "index.npy").unlink(),
    "dataset.json is missing (writing was cut short)": lambda d: (d / "dataset.json").unlink(),
    "dataset.json is cut": lambda d: cut(d / "dataset.json", 300),
    "a checksum in dataset.json is altered": lambda d: edit(
        d / "dataset.json", '"sha256": "', '"sha256": "0'
    ),
    "an image cannot be decoded, though its bytes are as written": undecodable,
}


def read(folder: ShardFolder) -> None:
    """What three epochs of training read."""
    spec = replace(SPEC, slots=1, images_per_slot=12)
    list(itertools.islice(slot_batches(spec, folder), STEPS))


def said(action: Callable[[], object]) -> str:
    """The message of a UserError; empty when there is none."""
    try:
        action()
    except UserError as error:
        return str(error).splitlines()[0]
    return ""


def plain(text: str, **places: object) -> str:
    for name, place in places.items():
        text = text.replace(str(place), name)
    text = re.sub(r"URL:\d+", "URL", text)
    text = re.sub(r"too slow: \d+ bytes in \d+ seconds", "too slow: N bytes in N seconds", text)
    text = re.sub(r" \(before: .*\)", "", text)  # a slow machine hangs too
    return re.sub(r"(?<![-_\d])\d{4,}", "N", text)


def local_row(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    make_shards(folder)
    LOCAL[name](folder)
    found = said(lambda: ShardFolder.open(folder))
    when = "before step 0"
    if not found:
        found, when = said(lambda: read(ShardFolder.open(folder))), "when it is read"
    if not found:
        when = "training is not touched by it"
    capsys.readouterr()
    status = run(check, folder, "--workers", 0)
    checked = capsys.readouterr().out.splitlines()[0]
    assert status == 1 and checked, f"{name}: check says nothing"
    return f"| {name} | {when} | {plain(found, DIR=folder)} | {plain(checked, DIR=folder)} |"


REMOTE = {
    "the server answers 500": "500",
    "a shard is missing there": "404",
    "the connection is cut": "cut",
    "the connection is cut, and the length was not announced": "unannounced",
    "the server hangs in the middle": "hang",
    "the body is another one": "wrong",
    "the body is longer": "long",
    "the body has no end": "endless",
    "the body comes byte by byte": "drip",
    "the answer comes byte by byte": "slow header",
    "the length that is announced is no number": "length",
}


def remote_row(name: str, server: Server, cache: Path) -> str:
    fault = REMOTE[name]
    server.fault = lambda path, n: fault if path.endswith(SHARD) and n < 2 else None
    data = Data(cache=str(cache / fault))
    repaired = said(lambda: read(open_folder(server.address, data)))
    server.fault = lambda path, n: fault if path.endswith(SHARD) else None
    data, when = Data(cache=str(cache / f"always-{fault}")), "before step 0"
    always = said(lambda: open_folder(server.address, data))
    if not always:
        always, when = said(lambda: read(open_folder(server.address, data))), "when it is fetched"
    assert SHARD in always and "attempts failed" in always, name
    repaired = repaired or "retried, training goes on"
    return f"| {name} | {repaired} | {when} | {plain(always, URL=server.address)} |"


def test_every_damage_is_noticed_and_the_table_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteFolder, "wait_seconds", 0.001)
    lines = ["## Shards on a file system", ""]
    lines += ["| damage | found by training | message | first line of `poa-ds check` |"]
    lines += ["|---|---|---|---|"]
    lines += [local_row(name, tmp_path / f"d{n}", capsys) for n, name in enumerate(LOCAL)]
    lines += ["", "## Shards at an address", ""]
    lines += [
        f"A fault that passes is retried ({fetch.ATTEMPTS} attempts, with growing waits; a server "
        f"that says nothing for {fetch.TIMEOUT_SECONDS:.0f} seconds has failed, and so has one "
        f"that after {fetch.PATIENCE * fetch.TIMEOUT_SECONDS:.0f} seconds sends less than "
        f"{fetch.SLOWEST // 1000} kB per second). No more is taken of a file than `dataset.json` "
        f"says of it, and of itself {remote.MANIFEST_BYTES >> 20} MiB.",
        "",
    ]
    lines += ["| fault | twice | always: found | message |", "|---|---|---|---|"]
    make_shards(tmp_path / "served")
    with serving(tmp_path / "served") as server:
        for name in REMOTE:
            with monkeypatch.context() as patch:
                if "hangs" in name or "byte by byte" in name:
                    seconds = 1.0 if "hangs" in name else 0.3
                    patch.setattr(fetch, "TIMEOUT_SECONDS", seconds)
                lines.append(remote_row(name, server, tmp_path / "cache"))
    lines += ["", *IMAGES_HEAD, *image_lines(), "", *TARS_HEAD]
    lines += tar_lines(tmp_path / "tars", capsys)
    text = HEAD + "\n".join(lines) + "\n"
    if os.environ.get("POA_WRITE_DOCS"):
        DOCUMENT.write_text(text)
    assert DOCUMENT.read_text() == text


# not a byte that training reads
BESIDE = ("tar header", "a bit between", "a checksum")


@pytest.mark.parametrize("name", [name for name in LOCAL if not any(b in name for b in BESIDE)])
def test_training_never_uses_damaged_bytes(tmp_path: Path, name: str) -> None:
    """What training could meet stops it; with a shard, a key or a file in the message."""
    make_shards(tmp_path / "train")
    LOCAL[name](tmp_path / "train")
    message = said(lambda: ShardFolder.open(tmp_path / "train")) or said(
        lambda: read(ShardFolder.open(tmp_path / "train"))
    )
    assert str(tmp_path / "train") in message, name

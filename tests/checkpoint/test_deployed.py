"""The file of a teacher, which has no checksum: whatever its header says, it is read or refused."""

import json
import random
import shutil
import struct
from pathlib import Path

import pytest
import torch

from poa_ds.checkpoint.deployed import WEIGHTS, find_teacher, load_teacher
from poa_ds.system.errors import UserError

RUN = Path(__file__).parents[1] / "run" / "run_of_61a1063" / "run"
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """The folder of a sound teacher, to be damaged."""
    return Path(shutil.copytree(find_teacher(RUN), tmp_path / "teacher"))


def parts(path: Path) -> tuple[bytes, bytes]:
    """Header and body of a safetensors file."""
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    return content[8:end], content[end:]


def put(path: Path, header: bytes, body: bytes, length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "I32"},  # as many bytes: nothing in the file contradicts it
        {"dtype": "U32"},
        {"dtype": "F16"},
        {"dtype": "X"},
        {"shape": [-1]},
        {"shape": [1 << 62, 4]},
        {"data_offsets": [0, 1 << 60]},
        {"data_offsets": [-4, 4]},
        {"data_offsets": [8, 4]},
    ],
)
def test_an_entry_that_lies_is_refused(change: dict, teacher: Path) -> None:
    header, body = parts(teacher / WEIGHTS)
    entries = json.loads(header)
    name = next(name for name in entries if name.startswith("backbone."))
    entries[name] |= change
    put(teacher / WEIGHTS, json.dumps(entries).encode(), body)
    with pytest.raises(UserError, match="damaged"):
        load_teacher(teacher)


@pytest.mark.parametrize("header", [b"", b"{", b"null", b"[]", b'{"a": 1}', b"\xff" * 20, DEEP])
def test_a_header_that_is_none_is_refused(header: bytes, teacher: Path) -> None:
    put(teacher / WEIGHTS, header, parts(teacher / WEIGHTS)[1])
    with pytest.raises(UserError, match="damaged"):
        load_teacher(teacher)


@pytest.mark.parametrize("length", [0, 7, 1 << 40, (1 << 64) - 1])
def test_a_header_of_another_length_is_refused(length: int, teacher: Path) -> None:
    put(teacher / WEIGHTS, *parts(teacher / WEIGHTS), length)
    with pytest.raises(UserError, match="damaged"):
        load_teacher(teacher)


def test_any_flipped_bits_of_the_header_give_a_teacher_or_one_sentence(teacher: Path) -> None:
    content, drawn = (teacher / WEIGHTS).read_bytes(), random.Random(0)
    end = len(content) - len(parts(teacher / WEIGHTS)[1])
    refused = 0
    for _ in range(100):
        changed = bytearray(content)
        for _ in range(drawn.randint(1, 4)):
            changed[drawn.randrange(end)] ^= 1 << drawn.randrange(8)
        (teacher / WEIGHTS).write_bytes(changed)
        try:
            model, _, _ = load_teacher(teacher)
            assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
        except UserError:
            refused += 1
    assert refused > 90

"""safetensors files of fp32 tensors, written so that a thread can do it beside the training.

The format's own writer holds the interpreter until the last byte is written and does not say
which error the disk had; this one lets go of it block by block and sums up the checksum on the way.
"""

import json
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

BLOCK_BYTES = 1 << 24


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(bytes, crc32) of the file, which is on the disk when this returns. OSError: it is not."""
    header = np.frombuffer(_header(arrays), np.uint8)
    size = crc = 0
    with open(path, "wb") as file:
        for content in (header, *(a.reshape(-1).view(np.uint8) for a in arrays.values())):
            for start in range(0, len(content), BLOCK_BYTES):
                block = content[start : start + BLOCK_BYTES]
                file.write(block)
                crc = zlib.crc32(block, crc)
                size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return size, crc


def _header(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Length and JSON of the safetensors format; the data begins at a multiple of 8 bytes."""
    records: dict[str, Any] = {}
    begin = 0
    for name, array in arrays.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous, name
        end = begin + array.nbytes
        records[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(records).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text

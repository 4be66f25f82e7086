"""The images among which `poa-ds look` finds neighbours: those it shows, or a reference."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from poa_ds.data.places import open_folder
from poa_ds.data.store.manifest import MANIFEST
from poa_ds.evaluate.embed import sources as image_sources
from poa_ds.evaluate.embed.sources import Images, Shards
from poa_ds.recipe.tree import Data
from poa_ds.system.paths import is_address

THUMB = 56  # pixels of a small picture


@dataclass(frozen=True)
class Bank:
    """M images. thumbs (M, THUMB, THUMB, 3) uint8; marks: of their pixels, the same for the same.

    tokens: (M, C) of each size.
    """

    keys: Sequence[str]
    thumbs: np.ndarray
    marks: Sequence[bytes]
    tokens: Sequence[Tensor]

    @classmethod
    def joined(cls, parts: Sequence["Bank"]) -> "Bank":
        return cls(
            [key for part in parts for key in part.keys],
            np.concatenate([part.thumbs for part in parts]),
            [mark for part in parts for mark in part.marks],
            [torch.cat(found) for found in zip(*(p.tokens for p in parts), strict=True)],
        )

    def same(self, marks: Sequence[bytes]) -> Tensor:
        """(B, M): whether an image of the bank is that picture."""
        return torch.tensor([[own == other for other in self.marks] for own in marks])


def bank(keys: Sequence[str], images: Tensor, pictures: Tensor, tokens: Sequence[Tensor]) -> Bank:
    """Of images (M, C, S, S), pictures of them (M, 3, S, S) uint8, class tokens by each size."""
    pixels = pictures.permute(0, 2, 3, 1).numpy()
    thumbs = [np.asarray(Image.fromarray(x).resize((THUMB, THUMB))) for x in pixels]
    return Bank(keys, np.stack(thumbs), marks(images), tokens)


def marks(images: Tensor) -> list[bytes]:
    return [hashlib.sha256(x.numpy().tobytes()).digest() for x in images]


def reference(place: str, data: Data) -> Images:
    """The images of a shard folder, here or at an address, of a list, or else of a tree."""
    if is_address(place) or (Path(place) / MANIFEST).is_file() or Path(place).is_file():
        return Shards(open_folder(place, data))
    return image_sources.below(Path(place), "--reference")

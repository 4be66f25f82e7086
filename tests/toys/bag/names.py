"""What sizes of the bag look like outside: the names of plain.py."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from poa_ds.model.form import in_chans
from poa_ds.model.space import Subnet
from tests.toys.bag import plain
from tests.toys.bag.network import ElasticBag
from tests.toys.bag.shape import BagShape


class BagForm:
    module = plain
    first_conv, classifier, pool, features = "patch", "head", "avg", "tokens (B, 1 + N, C)"
    fixed_size, note, title = False, "a toy", "bag of patches"
    published_block = None

    @staticmethod
    def extract(model: ElasticBag, subnet: Subnet, dtype: torch.dtype) -> dict[str, Tensor]:
        """Prefixes of the kept blocks; the factor max width / width goes into the weights."""
        c, whole = subnet.width, model.space.intact.width
        found = {"patch.weight": model.embed.patch.weight[:c]}
        found["patch.bias"] = model.embed.patch.bias[:c]
        for place, block in enumerate(model.members(subnet)):
            made = model.blocks[block]
            found[f"layers.{place}.weight"] = made.fc.weight[:c, :c] * (whole / c)
            found[f"layers.{place}.bias"] = made.fc.bias[:c]
            found[f"norms.{place}.weight"] = made.norm.weight[:c]
            found[f"norms.{place}.bias"] = made.norm.bias[:c]
        found |= {"norm.weight": model.norm.weight[:c], "norm.bias": model.norm.bias[:c]}
        return {n: t.detach().to("cpu", dtype).contiguous() for n, t in found.items()}

    @staticmethod
    def from_plain(state: Mapping[str, Tensor], shape: BagShape) -> dict[str, Tensor]:
        found = {}
        for name, tensor in state.items():
            name = re.sub(r"^layers\.(\d+)\.", r"blocks.\1.fc.", name)
            name = re.sub(r"^norms\.(\d+)\.", r"blocks.\1.norm.", name)
            found[re.sub(r"^patch\.", "embed.patch.", name)] = tensor
        return found

    @staticmethod
    def arguments(
        shape: BagShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any]]:
        sizes = {"dim": subnet.width, "depth": subnet.depth}
        return "bag", sizes | {"patch_size": shape.patch_size} | in_chans(shape)

    @staticmethod
    def not_timm(shape: BagShape, subnet: Subnet) -> str:
        return "timm has no bag of patches"

    @staticmethod
    def not_hf(shape: BagShape, subnet: Subnet) -> str:
        return "transformers has no bag of patches"

    @staticmethod
    def feature(features: Tensor) -> Tensor:
        return features[:, 0]

    @staticmethod
    def tokens(features: Tensor, shape: BagShape) -> Tensor:
        return features


FORM = BagForm()

"""Names of ResNets elsewhere: the published code's, the plain module's and timm's."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from poa_ds.model.backbone import pooled
from poa_ds.model.form import backbone_part, blocks_of, in_chans, stages_of
from poa_ds.model.resnet import plain
from poa_ds.model.resnet.network import ElasticResNet
from poa_ds.model.resnet.shape import ResNetShape
from poa_ds.model.space import ElasticSpace, Subnet
from poa_kernels.slices import alpha

PUBLISHED_STEM, PUBLISHED_GROUPS = 64, 32  # all that timm's ResNet with group norms can have


def from_published(state: Mapping[str, Tensor], stages: Sequence[int]) -> dict[str, Tensor]:
    """The published ResNet's state dict (with or without `backbone.`) under our names.

    stages: blocks of each. Keys of other parts (heads) are left out; blocks that the stages do not
    have keep their names.
    """
    firsts = [0, *accumulate(stages)]
    ours: dict[str, Tensor] = {}
    for name, tensor in backbone_part(state).items():
        found = re.match(r"layer(\d)\.layers\.(\d+)\.(.+)", name)
        if found and int(found[2]) >= stages[int(found[1]) - 1]:  # that number is another stage's
            ours[name] = tensor
        elif found:
            place = firsts[int(found[1]) - 1] + int(found[2])
            ours[f"blocks.{place}.{found[3].replace('.conv.', '.')}"] = tensor
        else:
            ours["embed." + re.sub(r"^(conv|norm)1\.", r"\1.", name)] = tensor
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_published`, without a prefix."""
    places, theirs = stages_of(state, "downsample"), {}
    for name, tensor in state.items():
        if found := re.match(r"blocks\.(\d+)\.(.+)", name):
            stage, place = places[int(found[1])]
            rest = re.sub(r"^(conv\d)\.", r"\1.conv.", found[2])
            name = f"layer{stage + 1}.layers.{place}.{rest}"
        name = re.sub(r"^(conv|norm)\.", r"\g<1>1.", name.removeprefix("embed."))
        theirs[name] = tensor
    return theirs


def _plain(rest: str) -> str:
    """Of a block: our norms have torchvision's names."""
    return re.sub(r"^norm(\d)\.", r"bn\1.", rest)


class ResNetForm:
    """How sizes of an ElasticResNet look outside: torchvision's and timm's names."""

    module = plain
    first_conv, classifier, pool = "conv1", "fc", "avg"
    features = "the last map (B, C, rows, columns)"
    fixed_size = False
    note = "the feature is the mean of the last map"

    title, published_block = "ResNet", r"layer\d\.layers\."

    @staticmethod
    def network_of(state: Mapping[str, Tensor], head_dim: int) -> ElasticResNet:
        width = len(state["layer1.layers.0.conv1.conv.weight"])
        depth = tuple(blocks_of(state, rf"layer{s}\.layers\.(\d+)\.") for s in range(1, 5))
        return ElasticResNet(
            ElasticSpace((width,), (depth,)),
            image_size=224,
            norm_groups=1,  # the tensors do not tell: as many for any
            stem=len(state["conv1.weight"]),
            channels=state["conv1.weight"].shape[1],
        )

    @staticmethod
    def to_published(state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        return to_published(state)

    @staticmethod
    def from_published(state: Mapping[str, Tensor], shape: ResNetShape) -> dict[str, Tensor]:
        return from_published(state, shape.stages)

    @staticmethod
    def extract(model: ElasticResNet, subnet: Subnet, dtype: torch.dtype) -> dict[str, Tensor]:
        whole, width, place = model.space.intact.width, subnet.width, {}
        factor = alpha(whole, width, model.input_scale)
        kept_blocks, firsts = model.members(subnet), [0, *accumulate(subnet.depth)]
        for stage, (first, last) in enumerate(pairwise(firsts)):
            for i, block in enumerate(kept_blocks[first:last]):
                place[block] = f"layer{stage + 1}.{i}"

        def cut(rest: str, tensor: Tensor) -> Tensor:
            rows = len(tensor) * width // whole
            if rest.startswith(("norm1.", "norm2.", "conv1.")):
                return tensor[:rows]
            if rest.startswith(("conv2.", "conv3.")):
                tensor = tensor[:, : tensor.shape[1] * width // whole] * factor
                return tensor[:rows] if rest.startswith("conv2.") else tensor
            return tensor

        kept: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            exact = tensor if tensor.dtype == torch.float64 else tensor.float()
            if found := re.match(r"blocks\.(\d+)\.(.+)", name):
                if int(found[1]) in place:
                    layer = place[int(found[1])]
                    kept[f"{layer}.{_plain(found[2])}"] = cut(found[2], exact)
            elif name != "embed.mask_token":
                name = name.replace("embed.conv.", "conv1.").replace("embed.norm.", "bn1.")
                kept[name] = exact
        return {name: t.to("cpu", dtype).contiguous() for name, t in kept.items()}

    @staticmethod
    def from_plain(state: Mapping[str, Tensor], shape: ResNetShape) -> dict[str, Tensor]:
        firsts, ours = [0, *accumulate(shape.stages)], {}
        for name, tensor in state.items():
            if found := re.match(r"layer(\d)\.(\d+)\.(.+)", name):
                stage, place = int(found[1]) - 1, int(found[2])
                if place < shape.stages[stage]:  # else its number is another stage's block
                    rest = re.sub(r"^bn(\d)\.", r"norm\1.", found[3])
                    name = f"blocks.{firsts[stage] + place}.{rest}"
            else:
                name = re.sub(r"^bn1\.", "embed.norm.", re.sub(r"^conv1\.", "embed.conv.", name))
            ours[name] = tensor
        return ours

    @staticmethod
    def arguments(
        shape: ResNetShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any]]:
        return "resnet", {
            "width": subnet.width,
            "outer": shape.outputs,
            "stem": shape.stem,
            "layers": list(subnet.depth),
            "groups": shape.norm_groups,
            **in_chans(shape),
        }

    @staticmethod
    def not_timm(shape: ResNetShape, subnet: Subnet) -> str:
        if (shape.stem, shape.norm_groups) != (PUBLISHED_STEM, PUBLISHED_GROUPS):
            return f"timm's has a stem of {PUBLISHED_STEM} and {PUBLISHED_GROUPS} groups per norm"
        return ""

    @classmethod
    def timm(
        cls, shape: ResNetShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        arguments = {"layers": list(subnet.depth), "base_width": subnet.width} | in_chans(shape)
        return "resnet50_gn", arguments, dict(state)

    @staticmethod
    def not_hf(shape: ResNetShape, subnet: Subnet) -> str:
        return "its ResNets have batch norms, and convolutions of its BiT are standardized"

    @staticmethod
    def of_timm(state: Mapping[str, Tensor], shape: ResNetShape) -> dict[str, Tensor]:
        return dict(state)

    @staticmethod
    def feature(features: Tensor) -> Tensor:
        return reduce(features, "n c r k -> n c", "mean")

    @staticmethod
    def tokens(features: Tensor, shape: ResNetShape) -> Tensor:
        return pooled(rearrange(features, "n c r k -> n r k c"))


FORM = ResNetForm()

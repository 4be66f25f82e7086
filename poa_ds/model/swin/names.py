"""Names and layouts of Swin elsewhere: the published code's, the plain module's and timm's."""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from poa_ds.model.backbone import pooled
from poa_ds.model.form import backbone_part, blocks_of, in_chans, stages_of
from poa_ds.model.row_orders import head_major, third_major
from poa_ds.model.shape import map_sides
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.swin import hf, plain
from poa_ds.model.swin.network import ElasticSwin, channel_major, position_major
from poa_ds.model.swin.shape import SwinShape
from poa_ds.model.swin.windows import relative_positions
from poa_ds.system.errors import UserError
from poa_kernels.slices import alpha

_PARTS = (
    (r"^mask_token$", "embed.mask_token"),
    (r"^patch_embed\.", "embed.patch."),
    (r"\.relative_position_bias_table$", ".position_bias"),
    (r"\.w_msa\.", "."),
    (r"\.ffn\.", ".mlp."),
    (r"\.(norm\d?)\.norm\.", r".\1."),
    (r"^norm3\.(norm\.)?", "norm."),
    (r"\.linear\.", "."),
)
# of the stages before the last: pre-training neither uses nor moves them; and what we compute
_UNUSED = re.compile(r"^norm[012]\.|\.relative_position_index$")


def from_published(
    state: Mapping[str, Tensor], stages: Sequence[int], head_dim: int
) -> dict[str, Tensor]:
    """The published Swin's state dict (with or without `backbone.`) under our names and layout.

    stages: blocks of each. Keys of other parts (heads) are left out; blocks that the stages do not
    have keep their names.
    """
    firsts = [0, *accumulate(stages)]
    ours: dict[str, Tensor] = {}
    for name, tensor in backbone_part(state).items():
        if _UNUSED.search(name):
            continue
        if found := re.match(r"stages\.(\d)\.blocks\.(\d+)\.(.+)", name):
            if int(found[2]) >= stages[int(found[1])]:  # its number is another stage's block
                ours[name] = tensor
                continue
            name = f"blocks.{firsts[int(found[1])] + int(found[2])}.{found[3]}"
        elif found := re.match(r"stages\.(\d)\.downsample\.(.+)", name):
            name = f"blocks.{firsts[int(found[1]) + 1]}.merge.{found[2]}"
        for pattern, replacement in _PARTS:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            tensor = head_major(tensor, head_dim)
        ours[name] = channel_major(tensor) if ".merge." in name else tensor
    return ours


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_published`, without a prefix; what pre-training left alone is added.

    Which blocks shift their windows does not stand in it. ValueError: patches are normed over more
    channels than the network has (backbone.projected), which the published Swin cannot be.
    """
    places = stages_of(state, "merge")
    if 8 * len(state["embed.patch.proj.weight"]) != len(state["norm.weight"]):
        raise ValueError(
            f"the patches have {len(state['embed.patch.proj.weight'])} channels and the network"
            f" {len(state['norm.weight']) // 8} (backbone.projected): no published Swin is so"
        )
    width, table = len(state["norm.weight"]) // 8, state["blocks.0.attn.position_bias"]
    head_dim, window = width // table.shape[1], round((len(table) ** 0.5 + 1) / 2)
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            tensor = third_major(tensor, head_dim)
        if ".merge." in name:
            tensor = position_major(tensor)
        name = _published(name, places)
        theirs[name] = tensor
        if name.endswith("bias_table"):
            index = relative_positions(window, torch.device("cpu"))
            index = rearrange(index, "(p q) -> p q", p=window**2).to(tensor.device)
            theirs[name.replace("bias_table", "index")] = index
    for stage in range(3):
        part = state["norm.weight"][: width * 2**stage]
        theirs |= {f"norm{stage}.norm.weight": torch.ones_like(part)}
        theirs |= {f"norm{stage}.norm.bias": torch.zeros_like(part)}
    return theirs


def _published(name: str, places: Sequence[tuple[int, int]]) -> str:
    part, _, rest = name.partition(".")
    if part == "embed":
        rest = re.sub(r"^patch\.norm\.", "patch.norm.norm.", rest)
        return re.sub(r"^patch\.", "patch_embed.", rest)
    if part == "norm":
        return f"norm3.norm.{rest}"
    number, _, rest = rest.partition(".")
    stage, block = places[int(number)]
    rest = re.sub(r"(norm\d?)\.", r"\1.norm.", rest)
    rest = re.sub(r"(qkv|proj|fc\d|reduction)\.", r"\1.linear.", rest)
    rest = rest.replace("mlp.", "ffn.").replace("attn.", "attn.w_msa.")
    rest = rest.replace("position_bias", "relative_position_bias_table")
    if rest.startswith("merge."):
        return f"stages.{stage - 1}.downsample.{rest.removeprefix('merge.')}"
    return f"stages.{stage}.blocks.{block}.{rest}"


def _cut(name: str, tensor: Tensor, *, whole: int, width: int, factor: float) -> Tensor:
    """One parameter of a block at a smaller width (of stage 1), its factor in the weight."""

    def size(full: int) -> int:
        return full * width // whole

    if name.endswith("position_bias"):
        return tensor[:, : size(tensor.shape[1])]
    if tensor.ndim == 2:
        return tensor[: size(len(tensor)), : size(tensor.shape[1])] * factor
    return tensor[: size(len(tensor))]


def _shifts(shape: SwinShape, subnet: Subnet) -> list[list[bool]]:
    """For each stage, of each kept block, whether its windows are shifted."""
    kept, rows, first = shape.members(subnet), [], 0
    for stage, physical in enumerate(shape.stages):
        own = [block - first for block in kept if first <= block < first + physical]
        rows.append([shape.shifts(stage)[block] for block in own])
        first += physical
    return rows


def _normed(shape: SwinShape, subnet: Subnet) -> str:
    """Why no other network has the norm of its patches, or an empty text."""
    if subnet.width == shape.normed:
        return ""
    return f"its patches are normalised over {shape.normed} channels, not {subnet.width}"


class SwinForm:
    """How sizes of an ElasticSwin look outside: a plain module, and timm's where it is the same."""

    module = plain
    first_conv, classifier, pool = "patch_embed.proj", "head.fc", "avg"
    features = "the last map (B, rows, columns, C)"
    fixed_size = True
    note = "with timm, only there; the feature is the mean token of the last map"

    title, published_block = "Swin", r"stages\.\d\.blocks\."

    @staticmethod
    def network_of(state: Mapping[str, Tensor], head_dim: int) -> ElasticSwin:
        width, channels, _, patch = state["patch_embed.proj.weight"].shape
        first = "stages.0.blocks.0."
        table = state[f"{first}attn.w_msa.relative_position_bias_table"]
        stages = tuple(blocks_of(state, rf"stages\.{s}\.blocks\.(\d+)\.") for s in range(4))
        return ElasticSwin(
            ElasticSpace((width,), (stages[SwinShape.elastic],)),
            stages=stages,
            image_size=56 * patch,
            patch_size=patch,
            head_dim=width // table.shape[1],
            window=round((len(table) ** 0.5 + 1) / 2),
            mlp_ratio=len(state[f"{first}ffn.fc1.linear.weight"]) // width,
            channels=channels,
        )

    @staticmethod
    def to_published(state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        return to_published(state)

    @staticmethod
    def from_published(state: Mapping[str, Tensor], shape: SwinShape) -> dict[str, Tensor]:
        return from_published(state, shape.stages, shape.head_dim)

    @staticmethod
    def extract(model: ElasticSwin, subnet: Subnet, dtype: torch.dtype) -> dict[str, Tensor]:
        """Under the names of swin/plain.py, in which a merge is a layer of its own."""
        whole, width = model.space.intact.width, subnet.width
        factor = alpha(whole, width, model.input_scale)
        place, layers = {}, 0
        for block in model.members(subnet):
            merges = model.blocks[block].merge is not None
            place[block] = layers + merges
            layers += 1 + merges
        kept: dict[str, Tensor] = {}
        for name, tensor in model.state_dict().items():
            exact = tensor if tensor.dtype == torch.float64 else tensor.float()
            part, _, rest = name.partition(".")
            if part == "blocks":
                number, _, rest = rest.partition(".")
                if int(number) not in place:
                    continue
                layer = place[int(number)] - rest.startswith("merge.")
                exact = _cut(rest, exact, whole=whole, width=width, factor=factor)
                if ".qkv." in rest:
                    exact = third_major(exact, model.shape.head_dim)
                if rest.startswith("merge."):
                    exact = position_major(exact)
                rest = rest.removeprefix("merge.").removeprefix("mlp.")
                rest = rest.replace("position_bias", "relative_position_bias_table")
                kept[f"layers.{layer}.{rest}"] = exact
            elif part == "norm":
                kept[name] = exact[: 8 * width]
            elif rest.startswith("patch."):
                # the projection stays whole: the norm after it works on all channels
                part = exact if "proj" in rest else exact[:width]
                kept[f"embed.{rest.removeprefix('patch.')}"] = part
        return {name: t.to("cpu", dtype).contiguous() for name, t in kept.items()}

    @staticmethod
    def from_plain(state: Mapping[str, Tensor], shape: SwinShape) -> dict[str, Tensor]:
        """Of plain.py's names; timm's are others."""
        begins = set(accumulate(shape.stages[:-1]))  # blocks with a merge before them
        layers = [
            f"blocks.{block}.{part}"
            for block in range(sum(shape.stages))
            for part in (["merge.", ""] if block in begins else [""])
        ]
        ours: dict[str, Tensor] = {}
        for name, tensor in state.items():
            if found := re.match(r"layers\.(\d+)\.(.+)", name):
                if int(found[1]) < len(layers):
                    rest = re.sub(r"^fc", "mlp.fc", found[2])
                    rest = rest.replace("relative_position_bias_table", "position_bias")
                    name = layers[int(found[1])] + rest
                if ".qkv." in name:
                    tensor = head_major(tensor, shape.head_dim)
                if ".merge." in name:
                    tensor = channel_major(tensor)
            ours[re.sub("^embed", "embed.patch", name)] = tensor
        return ours

    @staticmethod
    def arguments(
        shape: SwinShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any]]:
        return "swin", {
            "width": subnet.width,
            "projected": shape.normed,
            "shifted": _shifts(shape, subnet),
            "patch_size": shape.patch_size,
            "head_dim": shape.head_dim,
            "window": shape.window,
            "mlp_ratio": shape.mlp_ratio,
            **in_chans(shape),
        }

    @staticmethod
    def not_timm(shape: SwinShape, subnet: Subnet) -> str:
        if why := _normed(shape, subnet):
            return why
        if any(row != [i % 2 == 1 for i in range(len(row))] for row in _shifts(shape, subnet)):
            return "its blocks do not shift their windows in turns"
        sides = [shape.grid(shape.image_size) // 2 * 2**i for i in range(4)]
        if any(side % shape.window for side in sides):  # timm rolls before it pads
            return f"its maps of {sides[-1]} to {sides[0]} rows do not divide into windows"
        return ""

    @classmethod
    def timm(
        cls, shape: SwinShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        theirs: dict[str, Tensor] = {}
        depths = shape.depths(subnet)
        starts = [sum(depths[:i]) + max(i - 1, 0) for i in range(4)]  # of the plain layers
        for name, tensor in state.items():
            if match := re.match(r"layers\.(\d+)\.(.+)", name):
                layer, rest = int(match[1]), match[2]
                stage = max(i for i in range(4) if starts[i] <= layer)
                block = layer - starts[stage] - (stage > 0)
                if block < 0:  # timm walks down the columns of a quad first
                    name = f"layers.{stage}.downsample.{rest}"
                    quads = rearrange(tensor, "... (i j c) -> ... (j i c)", i=2, j=2)
                    tensor = quads.contiguous()
                else:
                    rest = re.sub(r"^fc", "mlp.fc", rest)
                    name = f"layers.{stage}.blocks.{block}.{rest}"
            theirs[re.sub("^embed", "patch_embed", name)] = tensor
        return (
            "swin_base_patch4_window7_224",
            {
                "img_size": shape.image_size,
                "patch_size": shape.patch_size,
                "embed_dim": subnet.width,
                "depths": list(depths),
                "num_heads": [subnet.width * 2**i // shape.head_dim for i in range(4)],
                "window_size": shape.window,
                "mlp_ratio": shape.mlp_ratio,
                "always_partition": True,
                "strict_img_size": False,
                **in_chans(shape),
            },
            theirs,
        )

    @staticmethod
    def not_hf(shape: SwinShape, subnet: Subnet) -> str:
        return _normed(shape, subnet) or hf.refused(shape, _shifts(shape, subnet))

    @classmethod
    def hf(
        cls, shape: SwinShape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        _, arguments, theirs = cls.timm(shape, subnet, state)
        return hf.written(arguments, theirs)

    @staticmethod
    def hf_features(hidden: Tensor, shape: SwinShape, rows: int) -> Tensor:
        return hidden.unflatten(1, (map_sides(rows, shape.patch_size)[-1], -1))

    @staticmethod
    def of_timm(state: Mapping[str, Tensor], shape: SwinShape) -> dict[str, Tensor]:
        raise UserError("it is written for timm: write it with --format state-dict")

    @staticmethod
    def feature(features: Tensor) -> Tensor:
        return reduce(features, "n r k c -> n c", "mean")

    @staticmethod
    def tokens(features: Tensor, shape: SwinShape) -> Tensor:
        return pooled(features)


FORM = SwinForm()

"""Another basis for the same ViT, in which its slices keep more of it: sorted, or rotated.

Heads and hidden units are sorted by what they add to the residual stream. Its channels are sorted
by their energy ("sort"), or turned ("rotate") so that LayerNorm over the first c channels sees the
first c - 1 principal components and nothing else: ours, exact for the intact network, since a
LayerNorm commutes with every rotation that keeps the vector of ones (docs/existing_weights.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.row_orders import with_key_bias
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError

Rebase = Literal["none", "sort", "rotate"]
KIND = "vit"  # the backbone that has other bases
State = dict[str, Tensor]


@dataclass(frozen=True)
class Statistics:
    """Of the intact network on some images, in float64.

    stream (C, C): second moments of the mean-free residual stream after all blocks. heads, units:
    of each block the mean squares of what enters `attn.proj` (C,) and `mlp.fc2` (units,).
    """

    stream: Tensor
    heads: tuple[Tensor, ...]
    units: tuple[Tensor, ...]


@dataclass(frozen=True)
class Rebased:
    """The intact network's features are `features @ matrix + bias` of the state's."""

    state: State
    matrix: Tensor
    bias: Tensor


def checked(network: ElasticBackbone, what: str) -> ElasticViT:
    """The network. UsageError: it is none that has another basis; what: the run, for the error."""
    if form.of(network.kind) is not form.of(KIND):
        raise UsageError(f"{what} is a {network.kind}: another basis is there for plain ViTs alone")
    vit = cast(ElasticViT, network)
    if vit.norm.widths:
        raise UsageError(f"{what} has backbone.norms per_width: another basis needs shared norms")
    return vit


@torch.no_grad()
def statistics(network: ElasticViT, batches: Iterable[Tensor]) -> Statistics:
    """What the intact network does with normalised images (B, 3, S, S)."""
    intact = network.space.intact
    stream = torch.zeros(intact.width, intact.width, dtype=torch.float64)
    sums: dict[nn.Module, Tensor] = {}
    rows = 0

    def after(_: nn.Module, inputs: Any, outputs: Sequence[Tensor]) -> None:
        x = outputs[0].double()
        x = x - x.mean(1, keepdim=True)
        stream.add_(x.T @ x)

    def before(layer: nn.Module, inputs: Sequence[Tensor]) -> None:
        nonlocal rows
        rows += len(inputs[0])
        sums[layer] = sums.get(layer, 0) + inputs[0].double().square().sum(0)

    hooks = [block.register_forward_hook(after) for block in network.blocks]
    layers = [layer for block in network.blocks for layer in (block.attn.proj, block.mlp.fc2)]
    hooks += [layer.register_forward_pre_hook(before) for layer in layers]
    try:
        for images in batches:
            network(images, intact)
    finally:
        for hook in hooks:
            hook.remove()
    count = rows / len(layers)
    of = [sums[layer] / count for layer in layers]
    return Statistics(stream / count / len(network.blocks), tuple(of[0::2]), tuple(of[1::2]))


def rebased(network: ElasticViT, found: Statistics | None, way: Rebase) -> Rebased:
    """The tensors of the network in another basis; computed in float64, in the network's type.

    way: "none" changes nothing and looks at no statistics. The state is that of the network which
    `described` describes.
    """
    own = network.state_dict()
    width = network.space.intact.width
    turn, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    if way == "none":
        return Rebased(own, turn, bias)
    assert found is not None, f"{way} needs statistics"
    state = {name: tensor.double() for name, tensor in own.items()}
    kind = own["norm.weight"].dtype
    _sort_inside(state, network, found)
    if way == "sort":
        order = found.stream.diagonal().argsort(descending=True, stable=True)
        turn = turn[order]
        _permute(state, order)
        matrix = turn
    else:
        turn = rotation(found.stream)
        _give_biases(state, network)
        matrix, bias = turn * state["norm.weight"], state["norm.bias"].clone()
        _fold(state, len(network.blocks))
        _turn(state, turn)
    kept = {name: tensor.to(kind).contiguous() for name, tensor in state.items()}
    return Rebased(kept, matrix, bias)


def described(recipe: Recipe, way: Rebase) -> Recipe:
    """The recipe of the network in another basis: a rotation gives all of qkv a bias."""
    if way != "rotate":
        return recipe
    return replace(recipe, backbone=replace(recipe.backbone, qkv_bias="full"))


def helmert(size: int) -> Tensor:
    """(size, size) orthogonal: column 0 is constant, column k lives on the first k + 1 rows."""
    basis = torch.zeros(size, size, dtype=torch.float64)
    basis[:, 0] = size**-0.5
    for k in range(1, size):
        basis[:k, k] = (k * (k + 1)) ** -0.5
        basis[k, k] = -k * (k * (k + 1)) ** -0.5
    return basis


def rotation(stream: Tensor) -> Tensor:
    """The orthogonal Q (C, C) with Q 1 = 1 that puts principal component k onto Helmert's column k.

    stream: second moments of mean-free rows. Of Q x, the first c channels without their mean are
    the first c - 1 principal components of x.
    """
    size = len(stream)
    _, vectors = torch.linalg.eigh(stream)
    ones = torch.full((size, 1), size**-0.5, dtype=torch.float64)
    # the vector of ones has no energy and comes last; rounding may mix it into its neighbours
    basis, signs = torch.linalg.qr(torch.cat((ones, vectors.flip(1)[:, : size - 1]), dim=1))
    basis = basis * signs.diagonal().sign()
    return helmert(size) @ basis.T


def _sort_inside(state: State, network: ElasticViT, found: Statistics) -> None:
    """Heads and hidden units of each block in the order of what they add to the stream.

    Heads as they are: rotary positions turn a channel with its partner, so that none moves within.
    """
    size = network.head_dim
    for block in range(len(network.blocks)):
        at = f"blocks.{block}."
        proj, fc2 = state[f"{at}attn.proj.weight"], state[f"{at}mlp.fc2.weight"]
        added = (found.heads[block] * proj.square().sum(0)).unflatten(0, (-1, size)).sum(1)
        heads = added.argsort(descending=True, stable=True)
        columns = _spread(heads, size)
        units = (found.units[block] * fc2.square().sum(0)).argsort(descending=True, stable=True)
        for layer, order in (("attn.qkv", heads), ("mlp.fc1", units)):
            for name in (f"{at}{layer}.weight", f"{at}{layer}.bias"):
                if name in state:
                    rows = _spread(order, len(state[name]) // len(order))
                    state[name] = state[name][rows]
        state[f"{at}attn.proj.weight"], state[f"{at}mlp.fc2.weight"] = (
            proj[:, columns],
            fc2[:, units],
        )


def _spread(order: Tensor, size: int) -> Tensor:
    """The order of groups of `size` rows -> the order of rows."""
    return (order[:, None] * size + torch.arange(size)).flatten()


READS, WRITES = (".attn.qkv.weight", ".mlp.fc1.weight"), (".attn.proj.", ".mlp.fc2.")


def _permute(state: State, order: Tensor) -> None:
    """Channels of the residual stream in another order."""
    for name, tensor in state.items():
        if name.endswith(READS) or (name.startswith("embed.") and ".patch." not in name):
            state[name] = tensor[..., order]
        elif ".attn.qkv." not in name and ".mlp.fc1." not in name:  # writers, norms, LayerScale
            state[name] = tensor[order]


def _give_biases(state: State, network: ElasticViT) -> None:
    """A bias to queries, keys and values, zero where there was none."""
    for block in range(len(network.blocks)):
        weight, bias = (f"blocks.{block}.attn.qkv.{kind}" for kind in ("weight", "bias"))
        if network.shape.qkv_bias == "no_key":
            state[bias] = with_key_bias(state[bias], network.head_dim)
        elif network.shape.qkv_bias == "none":
            state[bias] = state[weight].new_zeros(len(state[weight]))


def _fold(state: State, depth: int) -> None:
    """Norms into the layers behind them, LayerScale into those before: all left at 1 and 0.

    Keys get a bias, which rotary positions do not let vanish in the softmax.
    """
    for block in range(depth):
        at = f"blocks.{block}."
        for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            weight, bias = f"{at}{layer}.weight", f"{at}{layer}.bias"
            state[bias] = state[bias] + state[weight] @ state[f"{at}{norm}.bias"]
            state[weight] = state[weight] * state[f"{at}{norm}.weight"]
            state[f"{at}{norm}.weight"] = torch.ones_like(state[f"{at}{norm}.weight"])
            state[f"{at}{norm}.bias"] = torch.zeros_like(state[f"{at}{norm}.bias"])
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state[f"{at}{scale}.gamma"]
            state[f"{at}{layer}.weight"] = state[f"{at}{layer}.weight"] * gamma[:, None]
            state[f"{at}{layer}.bias"] = state[f"{at}{layer}.bias"] * gamma
            state[f"{at}{scale}.gamma"] = torch.ones_like(gamma)
    state["norm.weight"] = torch.ones_like(state["norm.weight"])
    state["norm.bias"] = torch.zeros_like(state["norm.bias"])


def _turn(state: State, turn: Tensor) -> None:
    """The rotation on everything that writes to the residual stream, its inverse on what reads."""
    for name, tensor in state.items():
        if name.endswith(READS) or (name.startswith("embed.") and ".patch." not in name):
            state[name] = tensor @ turn.T
        elif ".patch." in name or any(part in name for part in WRITES):
            state[name] = (
                (turn @ tensor.flatten(1)).view_as(tensor) if tensor.ndim > 1 else turn @ tensor
            )

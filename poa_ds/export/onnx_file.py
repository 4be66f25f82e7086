"""ONNX files: a plain network written, and run again without torch."""

import importlib.util
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model import first_layer
from poa_ds.system.errors import UserError

OPSET = 17  # the first with LayerNormalization
CUBIC = -0.75  # the constant of torch's bicubic kernel
INPUT, OUTPUTS = "images", ("feature", "features")


class _Both(nn.Module):
    """(class feature, what forward_features gives) in one pass, in float32 with any weights."""

    def __init__(self, network: nn.Module, feature: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.feature = network, feature
        self.dtype = next(network.parameters()).dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.forward_features(images.to(self.dtype)).float()
        return self.feature(features), features


def write(
    network: nn.Module,
    feature: Callable[[Tensor], Tensor],
    path: Path,
    side: int,
    *,
    any_size: bool = False,
) -> None:
    """Write the network for images (B, C, side, side), any B; with any_size for any sides too.

    feature: what the network's forward_features gives -> class features.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError("--format onnx needs the package onnx: pip install onnx")
    channels = _channels(network)
    both, images = _Both(network, feature).eval(), torch.zeros(2, channels, side, side)
    free = {name: {0: "batch"} for name in (INPUT, *OUTPUTS)}
    if any_size:
        free[INPUT] |= {2: "rows", 3: "columns"}
        free[OUTPUTS[1]] |= _places(network, side)
        if hasattr(network, "positions"):
            network.positions = partial(_positions_of_any_size, network)
    with warnings.catch_warnings():
        # of tracing: without any_size, sizes of maps become constants; the tracing exporter is old
        warnings.simplefilter("ignore")
        torch.onnx.export(
            both,
            (images,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes=free,
        )


def _channels(network: nn.Module) -> int:
    """Of the images that it takes."""
    state = network.state_dict()
    return state[first_layer.of(state)].shape[1]


@torch.no_grad()
def _places(network: nn.Module, side: int) -> dict[int, str]:
    """The axes of the features that grow with the images."""
    like = next(network.parameters())
    images = [like.new_zeros(1, _channels(network), n, n) for n in (side, 2 * side)]
    shapes = [network.forward_features(x).shape for x in images]
    grown = [axis for axis, (small, large) in enumerate(zip(*shapes, strict=True)) if small < large]
    return {axis: f"places{axis}" for axis in grown}


def _positions_of_any_size(vit: nn.Module, rows: Tensor, columns: Tensor) -> Tensor:
    """What the plain ViT's `positions` gives, as arithmetic that a trace keeps for all sizes."""
    side = vit.grid
    trained = (rows == side) & (columns == side)
    table = vit.pos_embed[:, vit.placed :].float().unflatten(1, (side, side))
    down, across = (_bicubic(count, side, trained) for count in (rows, columns))
    table = torch.einsum("rs,ct,bstd->brcd", down, across, table).flatten(1, 2)
    return torch.cat((vit.pos_embed[:, : vit.placed], table.to(vit.pos_embed.dtype)), dim=1)


def _bicubic(count: Tensor, side: int, trained: Tensor) -> Tensor:
    """(count, side): F.interpolate's weights at the scale (count + 0.1) / side; trained: none."""
    places = (torch.arange(count) + 0.5) * (side / (count + 0.1)) - 0.5
    taps = torch.arange(-2, side + 2)  # those outside stand for the first and the last place
    x = (places[:, None] - taps).abs()
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CUBIC
    weights = torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros(())))
    weights = weights @ _one_hot(taps, side)
    return torch.where(trained, _one_hot(torch.arange(count), side), weights)


def _one_hot(places: Tensor, side: int) -> Tensor:
    return F.one_hot(places.clamp(0, side - 1), side).float()


class Network(nn.Module):
    """An ONNX file on the CPU, called like the network it was written from.

    threads: 0 for as many as onnxruntime takes by itself.
    """

    def __init__(self, path: Path, threads: int = 0) -> None:
        super().__init__()
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError("running an ONNX file needs the package onnxruntime")
        import onnxruntime

        options, providers = onnxruntime.SessionOptions(), ["CPUExecutionProvider"]
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def _run(self, images: Tensor) -> list[Tensor]:
        found = self.session.run(list(OUTPUTS), {INPUT: images.float().numpy()})
        return [torch.from_numpy(output) for output in found]

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)[0]

    def forward_features(self, images: Tensor) -> Tensor:
        return self._run(images)[1]

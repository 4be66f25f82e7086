"""ONNX files: a plain network written, and run again without torch."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from poa_ds.system.errors import UserError

OPSET = 17  # the first with LayerNormalization
INPUT, OUTPUTS = "images", ("feature", "features")


class _Both(nn.Module):
    """(class feature, what forward_features gives) in one pass."""

    def __init__(self, network: nn.Module, feature: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.feature = network, feature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.forward_features(images)
        return self.feature(features), features


def write(network: nn.Module, feature: Callable[[Tensor], Tensor], path: Path, side: int) -> None:
    """Write the network for images (B, 3, side, side), any B.

    feature: what the network's forward_features gives -> class features.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError("--format onnx needs the package onnx: pip install onnx")
    images = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        # of tracing: sizes of maps become constants, as they must; the tracing exporter is old
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Both(network, feature).eval(),
            (images,),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *OUTPUTS)},
        )


class Network(nn.Module):
    """An ONNX file on the CPU, called like the network it was written from."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError("--check of an ONNX file needs the package onnxruntime")
        import onnxruntime

        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(path), providers=providers)

    def _run(self, images: Tensor) -> list[Tensor]:
        found = self.session.run(list(OUTPUTS), {INPUT: images.float().numpy()})
        return [torch.from_numpy(output) for output in found]

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)[0]

    def forward_features(self, images: Tensor) -> Tensor:
        return self._run(images)[1]

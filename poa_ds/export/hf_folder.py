"""Folders of transformers: what lies beside the weights, and the network loaded again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UserError

PROCESSOR = "preprocessor_config.json"
BICUBIC = 3  # PIL's number


def processor(recipe: Recipe) -> str:
    """preprocessor_config.json: the pixels of the recipe's evaluations."""
    evaluation, augmentation = recipe.evaluation, recipe.augmentation
    about = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": evaluation.resize},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": evaluation.crop, "width": evaluation.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(augmentation.mean),
        "image_std": list(augmentation.std),
    }
    return json.dumps(about, indent=2) + "\n"


class Network(nn.Module):
    """A folder as AutoModel loads it, called like the network it was written from.

    features: (last_hidden_state, rows of the images) -> what that network's forward_features gives.
    UserError: transformers is not installed, or does not find every tensor in its place.
    """

    def __init__(self, folder: Path, features: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        try:
            from transformers import AutoModel, logging  # seconds, and not every machine has it
        except ImportError as error:
            raise UserError(
                "reading a folder of transformers needs that package: pip install 'poa_ds[hf]'"
            ) from error
        logging.disable_progress_bar()  # of tensors, gone before it can be read
        network, report = AutoModel.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
        wrong = {name: sorted(map(str, found)) for name, found in report.items() if found}
        if wrong:
            raise UserError(f"{folder} does not fit its config.json: {wrong}")
        self.network, self.features = network.eval(), features

    def _run(self, images: Tensor) -> Any:
        return self.network(images.to(self.network.dtype))

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self._run(images).pooler_output.float()

    @torch.inference_mode()
    def forward_features(self, images: Tensor) -> Tensor:
        return self.features(self._run(images).last_hidden_state.float(), images.shape[-2])

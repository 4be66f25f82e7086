"""What a finished network says of the places of an image, beside the image as a whole."""

from torch import Tensor, nn


def both(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(class features (B, C), features of the patches (B, N, C), row by row of the image).

    network: of timm, or with its `forward_features`: tokens (B, T, C) of which num_prefix_tokens
    stand before the patches, or a map, (B, rows, columns, C) or (B, C, rows, columns). Without
    `forward_head` the first token is the class feature, or else the mean of the map.
    """
    found = network.forward_features(images)
    if found.dim() == 3:
        patches = found[:, getattr(network, "num_prefix_tokens", 0) :]
    elif found.shape[1] == found.shape[2]:
        patches = found.flatten(1, 2)
    else:
        patches = found.flatten(2).transpose(1, 2)
    if hasattr(network, "forward_head"):
        return network.forward_head(found), patches
    return found[:, 0] if found.dim() == 3 else patches.mean(1), patches

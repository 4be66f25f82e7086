"""A network of one size with a classifier on top, as labels train it whole."""

import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.model.backbone import DropPath, ElasticBackbone


class Classified(nn.Module):
    """The intact size of a backbone, `classifier` on what it reads out.

    projected: channels of a linear layer and GELU in between, which stand on the class feature as
    the first layer of a projection head does (iBOT's and POA's way from few labels); 0: none.
    """

    def __init__(self, backbone: ElasticBackbone, classes: int, *, projected: int = 0) -> None:
        super().__init__()
        self.backbone, self.size = backbone, backbone.space.intact
        width = backbone.feature_width(self.size)
        self.projection = nn.Linear(width, projected) if projected else None
        self.classifier = nn.Linear(projected or backbone.readout_width(self.size), classes)

    def forward(self, images: Tensor, drop_path: DropPath | None = None) -> Tensor:
        """Images (B, channels, S, S), normalised -> scores (B, classes)."""
        dtype = self.classifier.weight.dtype  # a last norm may be fp32
        if self.projection is None:
            return self.classifier(self.backbone.readout(images, self.size, drop_path).to(dtype))
        [[tokens]] = self.backbone.streams((images,), (self.size,), (None,), drop_path)
        return self.classifier(F.gelu(self.projection(tokens[:, 0].to(dtype))))

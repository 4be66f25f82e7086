"""A network of one size with a classifier on top, as labels train it whole."""

from torch import Tensor, nn

from poa_ds.model.backbone import DropPath, ElasticBackbone


class Classified(nn.Module):
    """The intact size of a backbone, `classifier` on what it reads out."""

    def __init__(self, backbone: ElasticBackbone, classes: int) -> None:
        super().__init__()
        self.backbone, self.size = backbone, backbone.space.intact
        self.classifier = nn.Linear(backbone.readout_width(self.size), classes)

    def forward(self, images: Tensor, drop_path: DropPath | None = None) -> Tensor:
        """Images (B, channels, S, S), normalised -> scores (B, classes)."""
        features = self.backbone.readout(images, self.size, drop_path)  # a last norm may be fp32
        return self.classifier(features.to(self.classifier.weight.dtype))

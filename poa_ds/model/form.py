"""What the sizes of a backbone look like outside: names, layouts, plain networks."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from poa_ds.model import architectures
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.shape import Shape
from poa_ds.model.space import Subnet


class Form(Protocol):
    """module: the one beside it that builds the plain network.

    first_conv, classifier, pool: parts by timm's words. features: what forward_features gives.
    fixed_size: timm builds it for one resolution. note: what users should know.
    """

    module: ModuleType
    first_conv: str
    classifier: str
    pool: str
    features: str
    fixed_size: bool
    note: str

    def from_published(self, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """The published code's backbone (with or without `backbone.`) under our names."""

    def extract(
        self, model: ElasticBackbone, subnet: Subnet, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The plain state dict of one size; factors folded in float32 or better, then cast."""

    def arguments(
        self, shape: Shape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any]]:
        """(name, arguments) of the network that takes the plain state."""

    def not_timm(self, shape: Shape, subnet: Subnet) -> str:
        """Why timm cannot express this size exactly, or an empty text."""

    def timm(
        self, shape: Shape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
        """(architecture, model_args, state) of timm."""

    def feature(self, features: Tensor) -> Tensor:
        """What the plain network's forward_features gives -> class features."""

    def tokens(self, features: Tensor) -> Tensor:
        """What the plain network's forward_features gives -> tokens of the elastic one."""


def of(kind: str) -> Form:
    """The form of a backbone, by its name."""
    return architectures.part(kind, "names").FORM

"""What the sizes of a backbone look like outside: names, layouts, plain networks."""

import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from poa_ds.model import architectures
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.options import COLOURS
from poa_ds.model.shape import Shape
from poa_ds.model.space import Subnet


class Form(Protocol):
    """module: the one beside it that builds the plain network.

    first_conv, classifier, pool: parts by timm's words. features: what forward_features gives.
    fixed_size: timm builds it for one resolution. note: what users should know. title: its usual
    name. published_block: what names of the published code's blocks begin with, a pattern;
    None: nothing of it is published, and the functions for such states are not there.
    """

    module: ModuleType
    first_conv: str
    classifier: str
    pool: str
    features: str
    fixed_size: bool
    note: str
    title: str
    published_block: str | None

    def network_of(self, state: Mapping[str, Tensor], head_dim: int) -> ElasticBackbone:
        """The network of one size whose published state this is. KeyError: of none.

        head_dim: where the tensors do not tell it.
        """

    def to_published(self, state: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
        """Our state dict under the published names and layout."""

    def from_published(self, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """The published code's backbone (with or without `backbone.`) under our names."""

    def extract(
        self, model: ElasticBackbone, subnet: Subnet, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The plain state dict of one size; factors folded in float32 or better, then cast."""

    def from_plain(self, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """The inverse of `extract` of the intact size: under our names, without the mask token.

        A network of another shape gives tensors that do not fit. UserError: there is no way back.
        """

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

    def not_hf(self, shape: Shape, subnet: Subnet) -> str:
        """Why transformers cannot express this size exactly, or an empty text.

        Where it never can, `hf` and `hf_features` are not there.
        """

    def hf(
        self, shape: Shape, subnet: Subnet, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """(config.json, state) of transformers; names of tensors as in files on the hub."""

    def hf_features(self, hidden: Tensor, shape: Shape, rows: int) -> Tensor:
        """What the plain network's forward_features gives, of transformers' last_hidden_state.

        rows: of the images.
        """

    def of_timm(self, state: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """The plain state that `timm` made this one of.

        KeyError: one of two tensors is missing. UserError: there is no way back.
        """

    def feature(self, features: Tensor) -> Tensor:
        """What the plain network's forward_features gives -> class features."""

    def tokens(self, features: Tensor, shape: Shape) -> Tensor:
        """What the plain network's forward_features gives -> tokens of the elastic one."""


def in_chans(shape: Shape) -> dict[str, int]:
    """The argument of plain and timm's networks that says it, of other images than in colours."""
    return {} if shape.channels == COLOURS else {"in_chans": shape.channels}


def backbone_part(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `backbone.` without that prefix, or all of a state without such names."""
    own = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    return own or dict(state)


def blocks_of(names: Iterable[str], pattern: str) -> int:
    """The blocks that are numbered by the first group of the pattern: the largest number + 1."""
    return 1 + max(int(found[1]) for name in names if (found := re.match(pattern, name)))


def stages_of(names: Iterable[str], first: str) -> list[tuple[int, int]]:
    """(stage, place in it) of each of our blocks. first: of a part that begins a stage."""
    names, places = list(names), []
    begins = {int(n.split(".")[1]) for n in names if re.match(rf"blocks\.\d+\.{first}\.", n)}
    for block in range(blocks_of(names, r"blocks\.(\d+)\.")):
        stage, place = places[-1] if places else (0, -1)
        places.append((stage + 1, 0) if block and block in begins else (stage, place + 1))
    return places


def of(kind: str) -> Form:
    """The form of a backbone, by its name."""
    return architectures.part(kind, "names").FORM

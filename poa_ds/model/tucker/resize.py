"""A network of any width and depth from a template: its core, and scalers for the new size.

Nothing is trained here. Of a size of the space it is the network that the space has; further away
it is a start: what SWEET's idea promises of it, this code does not know (docs/methods/sweet.md).
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.model.tucker.shape import TuckerShape
from poa_ds.system.errors import UsageError
from poa_kernels.slices import alpha


def check(shape: TuckerShape, size: Subnet) -> None:
    """UsageError: there is no such ViT."""
    if not isinstance(size.depth, int) or size.depth < 1 or size.width < 1:
        raise UsageError(f"size {size}: one of a ViT is WIDTHxDEPTH, at least {shape.head_dim}x1")
    if size.width % shape.head_dim:
        raise UsageError(
            f"size {size}: width {size.width} is not a multiple of backbone.head_dim"
            f" {shape.head_dim}"
        )


class Resize:
    """The tensors of a new size, from those of a template network of that space, in float32.

    Depth: the space's own blocks for a depth of it, otherwise scalers between those of the two
    blocks around, and the nearest block's vectors. Width: the first channels; channels beyond the
    widest get rows of the factors with the deviation of those that are there, and what the patches,
    the class token and the positions say in the template's own channels.
    input_scale: of the template network. generator: what is drawn.
    """

    def __init__(
        self,
        whole: Mapping[str, Tensor],
        space: ElasticSpace,
        size: Subnet,
        *,
        input_scale: float,
        generator: torch.Generator,
    ) -> None:
        self.whole = {name: tensor.float().cpu() for name, tensor in whole.items()}
        self.size, self.deepest, self.widest = size, space.intact.depth, space.intact.width
        self.factor = alpha(self.widest, size.width, input_scale)
        # of its blocks among the template's, fractions allowed
        last = self.deepest - 1
        self.places = [i * last / max(size.depth - 1, 1) for i in range(size.depth)]
        if size.depth in space.depths:
            self.places = [float(block) for block in space.blocks(size.depth)]
        rows, columns = (self.whole[f"template.{name}_factor"] for name in ("row", "column"))
        self.rows, self.columns = (self._longer(factor, generator) for factor in (rows, columns))
        # channels that are new, by the old ones: least squares through the template's
        self.new_channels = self.rows[self.widest :] @ torch.linalg.pinv(rows)

    def _longer(self, factor: Tensor, generator: torch.Generator) -> Tensor:
        """(width, rank): the factor's first rows, and drawn ones beyond them."""
        more = max(self.size.width - self.widest, 0)
        drawn = torch.randn(more, factor.shape[1], generator=generator) * factor.std(dim=0)
        return torch.cat((factor[: self.size.width], drawn))

    def state(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A tensor for each name, of the shape of the one there."""
        return {name: self._tensor(name, tensor) for name, tensor in like.items()}

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        if name == "template.row_factor":
            return self.rows
        if name == "template.column_factor":
            return self.columns * self.factor
        if name == "template.core":
            return self.whole[name]
        if found := re.fullmatch(r"template\.block_factors_(\d+)", name):
            return self._scalers(self.places[int(found[1])])
        if name.startswith("embed."):
            return self._embedding(self.whole[name], like)
        if found := re.match(r"blocks\.(\d+)\.", name):
            nearest = int(self.places[int(found[1])] + 0.5)
            name = f"blocks.{nearest}.{name[found.end() :]}"
        return self._vector(name, like)

    def _scalers(self, place: float) -> Tensor:
        low = int(place)
        high, share = min(low + 1, self.deepest - 1), place - low
        one, other = (self.whole[f"template.block_factors_{block}"] for block in (low, high))
        return one if share == 0 else torch.lerp(one, other, share)

    def _embedding(self, tensor: Tensor, like: Tensor) -> Tensor:
        """Channels are the first axis of the patch projection, the last of all else."""
        axis = 0 if tensor.ndim in (1, 4) else -1
        channels = tensor.movedim(axis, 0)
        new = torch.tensordot(self.new_channels, channels, dims=1)
        return torch.cat((channels, new)).movedim(0, axis).narrow(axis, 0, like.shape[axis])

    def _vector(self, name: str, like: Tensor) -> Tensor:
        """Beyond the widest: 1 for a norm's weight, the mean for LayerScale, 0 for a bias."""
        vector = self.whole[name]
        rest = 1.0 if name.endswith("weight") else 0.0
        if name.endswith("gamma"):
            rest = vector.mean().item()
        more = max(len(like) - len(vector), 0)
        return torch.cat((vector[: len(like)], torch.full((more,), rest)))

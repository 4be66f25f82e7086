"""The state dict of one extracted size, and the plain network that takes it."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from poa_ds.model import form


class PlainState(dict[str, Tensor]):
    """A state dict with what else its network needs: no recipe, no elastic network.

    kind: its backbone. arguments: of the class of that backbone's plain.py; a Swin's say which
    blocks shift their windows and how many channels the patches are projected to.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], *, kind: str, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__(tensors)
        self.kind, self.arguments = kind, dict(arguments)

    def network(self) -> nn.Module:
        """The plain network in eval mode, in the type of the tensors: images -> features (B, C)."""
        return build(form.of(self.kind).module, self.arguments, self)


def build(
    module: ModuleType, arguments: Mapping[str, Any], state: Mapping[str, Tensor]
) -> nn.Module:
    """A plain network in eval mode."""
    network = module.Network(**arguments)
    network.load_state_dict(dict(state), strict=True, assign=True)
    return network.eval()

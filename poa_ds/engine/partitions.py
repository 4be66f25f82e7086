"""Masters and states of the optimizer by the names of parameters, whatever the ZeRO stage."""

import torch
from torch import Tensor

from poa_ds.engine.networks import Networks
from poa_ds.engine.stages import Stage
from poa_ds.system import dist


class Partitions:
    """parts: where this rank's elements of every parameter are. shapes: of the whole ones."""

    def __init__(self, stage: Stage, networks: Networks) -> None:
        self._stage, self._averaged = stage, tuple(networks.averaged())
        self.parts = [part for part in stage.parts() if part.count > 0]
        self.shapes = {
            name: getattr(p, "ds_shape", p.shape) for name, p in networks.trained().items()
        }

    def state(self, key: str) -> dict[str, Tensor]:
        """Name -> this rank's part of the masters ("fp32") or of a state tensor, as a view.

        Of "ema" only what is averaged.
        """
        flats, state = self._stage.flats(), self._stage.optimizer.state
        tensors = [f.detach() if key == "fp32" else state[f].get(key) for f in flats]
        return {
            part.name: tensor.view(-1).narrow(0, part.offset, part.count)
            for part in self.parts
            if (tensor := tensors[part.flat]) is not None
        }

    def whole(self, key: str) -> dict[str, Tensor]:
        """The whole masters or averages on the CPU of every rank. A collective."""
        parts, own = {part.name: part for part in self.parts}, self.state(key)
        device, whole = self._stage.flats()[0].device, {}
        for name in self._averaged if key == "ema" else self.shapes:
            tensor = torch.zeros(self.shapes[name].numel(), dtype=torch.float32, device=device)
            if name in parts:
                tensor.narrow(0, parts[name].first, parts[name].count).copy_(own[name])
            whole[name] = dist.all_sum(tensor).view(self.shapes[name]).cpu()
        return whole

"""Where the elements of every parameter live on this rank, for ZeRO stages 0 to 3.

The one place that knows DeepSpeed's inner attributes (tested with 0.19.8); teacher, clipping,
learning-rate factors and checkpoints are written in terms of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from poa_ds.system.errors import UserError

_NEEDED = {
    1: ("single_partition_of_fp32_groups", "bit16_groups", "bit16_groups_flat", "param_names"),
    3: ("fp32_partitioned_groups_flat", "fp16_groups", "sub_group_to_group_id", "param_names"),
}
_NEEDED[2] = _NEEDED[1]


@dataclass(frozen=True)
class Piece:
    """`count` consecutive elements of a parameter, from `first`, at `offset` of a local flat."""

    name: str  # of the student's parameter, without "student."
    flat: int
    offset: int
    count: int
    first: int


class Shards:
    """This rank's fp32 masters: flats (1-D tensors that key the optimizer's state) and pieces."""

    def __init__(self, engine) -> None:
        self.engine = engine
        self.stage: int = engine.zero_optimization_stage()
        self.zero = engine.optimizer
        for attribute in _NEEDED.get(self.stage, ()):
            if not hasattr(self.zero, attribute):
                raise UserError(
                    f"this DeepSpeed's ZeRO-{self.stage} optimizer "
                    f"({type(self.zero).__name__}) has no `{attribute}`: "
                    "poa_ds is tested with deepspeed 0.19.8"
                )
        if self.stage == 0:
            named = {id(p): n for n, p in engine.module.named_parameters()}
            groups = self.optimizer.param_groups
            self._plain = [(named[id(p)], p) for g in groups for p in g["params"]]
            self._plain_groups = [g for g in groups for _ in g["params"]]
        self.pieces = [piece for piece in self._pieces() if piece.count > 0]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that owns the state: ours, below ZeRO's wrapper."""
        return self.zero.optimizer if self.stage else self.zero

    def flats(self) -> list[Tensor]:
        if self.stage == 0:
            return [p for _, p in self._plain]
        if self.stage == 3:
            return list(self.zero.fp32_partitioned_groups_flat)
        return list(self.zero.single_partition_of_fp32_groups)

    def group(self, flat: int) -> dict:
        """The parameter group that a flat belongs to."""
        if self.stage == 0:
            return self._plain_groups[flat]
        index = self.zero.sub_group_to_group_id[flat] if self.stage == 3 else flat
        return self.zero.param_groups[index]

    def gradients(self, flat: int) -> list[Tensor]:
        """The averaged gradients of a flat, between backward and step; scaled by the loss scale."""
        if self.stage == 0:
            found = [self._plain[flat][1].grad]
        else:
            found = self.zero.averaged_gradients.get(flat) or []
        return [g for g in found if g is not None and g.numel()]

    def loss_scale(self) -> float | Tensor:
        return self.zero.loss_scale if self.stage else 1.0

    def state(self, key: str) -> dict[str, Tensor]:
        """Name -> this rank's piece of the masters ("fp32") or of a state tensor, as a view."""
        flats, state = self.flats(), self.optimizer.state
        return {
            p.name: (flats[p.flat].detach() if key == "fp32" else state[flats[p.flat]][key])
            .view(-1)
            .narrow(0, p.offset, p.count)
            for p in self.pieces
        }

    def _pieces(self) -> list[Piece]:
        if self.stage == 0:
            return [
                Piece(_short(name), i, 0, p.numel(), 0) for i, (name, p) in enumerate(self._plain)
            ]
        return self._stage_3() if self.stage == 3 else self._stage_1_2()

    def _stage_3(self) -> list[Piece]:
        pieces = []
        for i, parameters in enumerate(self.zero.fp16_groups):
            offset = 0
            for p in parameters:
                n = p.partition_numel()
                first = n * torch.distributed.get_rank(p.ds_process_group)
                # the last ranks' partitions may be padded, or all padding
                count = min(n, p.ds_numel - first)
                pieces.append(Piece(_short(self.zero.param_names[p]), i, offset, count, first))
                offset += n
        return pieces

    def _stage_1_2(self) -> list[Piece]:
        pieces = []
        for i, parameters in enumerate(self.zero.bit16_groups):
            for p in parameters:
                here = p._hp_mapping
                if here is None:  # no element of p lives on this rank
                    continue
                place = here.hp_fragment_address
                first = here.lp_fragment_address.start
                name = _short(self.zero.param_names[p])
                pieces.append(Piece(name, i, place.start, place.numel, first))
        return pieces


def _short(name: str) -> str:
    assert name.startswith("student."), name
    return name.removeprefix("student.")

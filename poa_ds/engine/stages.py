"""What ZeRO's stages do differently, a class for each: where masters lie, how averages travel.

The moving average of the weights (the teacher) is never rounded: its fp32 master is a state of the
optimizer, `ema`, cut up like the other states. `push` brings it into the weights that the teacher's
forward uses. Here and in engine.py alone are DeepSpeed's inner attributes (tested with 0.19.8).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed
from torch import Tensor, nn

from poa_ds.engine.networks import Networks
from poa_ds.engine.optim import EmaAdamW
from poa_ds.system.errors import UserError


@dataclass(frozen=True)
class Part:
    """`count` consecutive elements of a parameter, from `first`, at `offset` of a local flat."""

    name: str
    flat: int
    offset: int
    count: int
    first: int


class Stage(ABC):
    """What the stages share. flats: this rank's fp32 masters, 1-D, which key the optimizer's state.

    zero: what DeepSpeed made of the optimizer. `averages`: student's parameter -> teacher's one.
    """

    needed: ClassVar[tuple[str, ...]] = ()  # attributes of `zero`

    def __init__(self, zero: Any, optimizer: EmaAdamW, networks: Networks) -> None:
        for attribute in self.needed:
            if not hasattr(zero, attribute):
                raise UserError(
                    f"this DeepSpeed's {type(self).__name__} optimizer ({type(zero).__name__}) has "
                    f"no `{attribute}`: poa_ds is tested with deepspeed 0.19.8"
                )
        self.zero, self.optimizer = zero, optimizer
        self.names = {id(p): name for name, p in networks.trained().items()}
        self.averages = {id(student): teacher for student, teacher in networks.averaged().values()}

    @abstractmethod
    def flats(self) -> list[Tensor]:
        """The masters, in the order of the numbers that `group` and `Part` name."""

    @abstractmethod
    def group(self, flat: int) -> dict:
        """The parameter group that a flat belongs to."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """Where the elements of every parameter are, as far as this rank has them."""

    @abstractmethod
    def push(self) -> None:
        """Bring the masters of the average into the weights of the teacher's forward."""

    @abstractmethod
    def reload(self) -> None:
        """Bring masters that were written in place into the students' weights."""

    def gradients(self, flat: int) -> list[Tensor]:
        """The averaged gradients of a flat, between backward and step; scaled by the loss scale."""
        found = self.zero.averaged_gradients.get(flat) or []
        return [g for g in found if g is not None and g.numel()]

    def loss_scale(self) -> float | Tensor:
        return self.zero.loss_scale

    def masters(self) -> list[tuple[int, Tensor]]:
        """(flat, master of its average) of the flats that are averaged."""
        states = (self.optimizer.state[flat] for flat in self.flats())
        return [(i, state["ema"]) for i, state in enumerate(states) if "ema" in state]


class Zero0(Stage):
    """One process, everything whole: the parameters are the masters."""

    def __init__(self, zero: Any, optimizer: EmaAdamW, networks: Networks) -> None:
        super().__init__(zero, optimizer, networks)
        self._own = [(p, group) for group in optimizer.param_groups for p in group["params"]]

    def flats(self) -> list[Tensor]:
        return [p for p, _ in self._own]

    def group(self, flat: int) -> dict:
        return self._own[flat][1]

    def gradients(self, flat: int) -> list[Tensor]:
        gradient = self._own[flat][0].grad
        return [] if gradient is None else [gradient]

    def parts(self) -> list[Part]:
        flats = enumerate(self.flats())
        return [Part(self.names[id(p)], i, 0, p.numel(), 0) for i, p in flats]

    def loss_scale(self) -> float:
        return 1.0

    @torch.no_grad()
    def push(self) -> None:
        for i, ema in self.masters():
            self.averages[id(self._own[i][0])].copy_(ema)

    def reload(self) -> None:
        pass  # the masters are the weights


class Zero12(Stage):
    """Whole weights; every parameter group's masters are one flat, of which a rank has its share.

    The teacher's weights are views of a flat laid out like the students': push is one all-gather
    per group, straight into the storage of the weights.
    """

    needed = ("single_partition_of_fp32_groups", "bit16_groups", "bit16_groups_flat")

    def __init__(self, zero: Any, optimizer: EmaAdamW, networks: Networks) -> None:
        super().__init__(zero, optimizer, networks)
        groups = range(len(zero.bit16_groups))
        self._teachers = {i: self._lay_out(i) for i in groups if self.group(i)["averaged"]}
        # DeepSpeed would take the norm of all gradients again, after Engine has per module
        unused = torch.zeros((), device=self.flats()[0].device)
        zero.scaled_global_norm = lambda norm_type=2: unused

    def _lay_out(self, group: int) -> Callable[[Tensor], None]:
        """The function that brings this rank's share of the average to all ranks."""
        of_students = self.zero.bit16_groups_flat[group]
        storage, flat = of_students.untyped_storage().data_ptr(), torch.empty_like(of_students)
        for p in self.zero.bit16_groups[group]:
            assert p.data.untyped_storage().data_ptr() == storage
            teacher = self.averages[id(p)]
            view = flat.narrow(0, p.data.storage_offset(), p.numel()).view(p.shape)
            view.copy_(teacher.data)
            teacher.data = view
        ranks = self.zero.real_dp_process_group[group]
        n = flat.numel() // torch.distributed.get_world_size(ranks)
        mine = flat.narrow(0, torch.distributed.get_rank(ranks) * n, n)

        def share_out(ema: Tensor) -> None:
            mine.copy_(ema)
            torch.distributed.all_gather_into_tensor(flat, mine, group=ranks)

        return share_out

    def flats(self) -> list[Tensor]:
        return list(self.zero.single_partition_of_fp32_groups)

    def group(self, flat: int) -> dict:
        return self.zero.param_groups[flat]

    def parts(self) -> list[Part]:
        parts = []
        for i, parameters in enumerate(self.zero.bit16_groups):
            for p in parameters:
                here = p._hp_mapping
                if here is None:  # no element of p lives on this rank
                    continue
                place, first = here.hp_fragment_address, here.lp_fragment_address.start
                parts.append(Part(self.names[id(p)], i, place.start, place.numel, first))
        return parts

    @torch.no_grad()
    def push(self) -> None:
        for group, ema in self.masters():
            self._teachers[group](ema)

    def reload(self) -> None:
        self.zero.update_lp_params()


class Zero3(Stage):
    """Weights are cut up as well, each parameter on its own, teacher and student in the same way.

    So push is a local copy from the master's part to the teacher's part.
    """

    needed = ("fp32_partitioned_groups_flat", "fp16_groups", "sub_group_to_group_id")

    def __init__(self, zero: Any, optimizer: EmaAdamW, networks: Networks) -> None:
        super().__init__(zero, optimizer, networks)
        # small parameters stay gathered under ZeRO-3: a new part would not reach the forward
        teachers, persistent = {id(p) for p in self.averages.values()}, zero.persistent_parameters
        for p in persistent:
            if id(p) in teachers:
                p.ds_persist = False
                if p.ds_status.name == "AVAILABLE":
                    p.partition()
        persistent[:] = [p for p in persistent if id(p) not in teachers]
        # as under the stages before; on the host, where DeepSpeed reads it
        unused = [torch.zeros(())]
        zero._get_norm_groups = lambda: unused

    def flats(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def group(self, flat: int) -> dict:
        return self.zero.param_groups[self.zero.sub_group_to_group_id[flat]]

    def parts(self) -> list[Part]:
        parts = []
        for i in range(len(self.zero.fp16_groups)):
            for p, offset, n in self._cut(i):
                first = n * torch.distributed.get_rank(p.ds_process_group)
                # the last ranks' parts may be padded, or all padding
                parts.append(Part(self.names[id(p)], i, offset, min(n, p.ds_numel - first), first))
        return parts

    def _cut(self, flat: int) -> list[tuple[nn.Parameter, int, int]]:
        """(parameter, offset, elements) of all that a flat holds, padding included."""
        found, offset = [], 0
        for p in self.zero.fp16_groups[flat]:
            found.append((p, offset, p.partition_numel()))
            offset += p.partition_numel()
        return found

    @torch.no_grad()
    def push(self) -> None:
        for i, ema in self.masters():
            cut = self._cut(i)
            teachers = [self.averages[id(p)].ds_tensor.data for p, *_ in cut]
            torch._foreach_copy_(teachers, [ema.narrow(0, offset, n) for _, offset, n in cut])

    def reload(self) -> None:
        zero = self.zero
        zero.checkpoint_event_prologue()  # everything cut up
        for low, master in zip(zero.fp16_partitioned_groups_flat, self.flats(), strict=True):
            low.data.copy_(master.data)
        zero.checkpoint_event_epilogue()  # gathers the persistent parameters again


STAGES: dict[int, type[Stage]] = {0: Zero0, 1: Zero12, 2: Zero12, 3: Zero3}

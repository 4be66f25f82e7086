"""The teacher: its fp32 master is sharded like the optimizer's state and never rounded.

The optimizer moves the master (state `ema`); `push` brings it into the low-precision weights
that the teacher's forward uses. Stages 1 and 2: one all-gather per parameter group, straight
into the storage that the weights are views of. Stage 3: a local copy, because teacher and
student are cut in the same way. Stage 0: a copy per parameter.
"""

from collections.abc import Mapping

import torch
import torch.distributed
from torch import Tensor, nn

from poa_ds.engine.partitions import Shards
from poa_ds.system import dist


class Teacher:
    """pairs: name -> (student parameter, teacher parameter) of equal shape."""

    def __init__(
        self, shards: Shards, pairs: Mapping[str, tuple[nn.Parameter, nn.Parameter]]
    ) -> None:
        self.shards, self.pairs = shards, pairs
        self._teacher_of = {id(student): teacher for student, teacher in pairs.values()}
        if shards.stage == 3:
            self._keep_partitioned()
        elif shards.stage:
            self._parts = [self._lay_out(i) for i in range(len(shards.zero.bit16_groups))]

    def _keep_partitioned(self) -> None:
        # small parameters stay gathered under ZeRO-3: a new shard would not reach the forward
        teachers = {id(teacher) for _, teacher in self.pairs.values()}
        persistent = self.shards.zero.persistent_parameters
        for p in persistent:
            if id(p) in teachers:
                p.ds_persist = False
                if p.ds_status.name == "AVAILABLE":
                    p.partition()
        persistent[:] = [p for p in persistent if id(p) not in teachers]

    def _lay_out(self, group: int) -> tuple[Tensor, Tensor, torch.distributed.ProcessGroup]:
        """Teacher weights become views of one flat laid out like the student's: (all, mine)."""
        zero = self.shards.zero
        student_flat = zero.bit16_groups_flat[group]
        storage = student_flat.untyped_storage().data_ptr()
        flat = torch.empty_like(student_flat)
        for p in zero.bit16_groups[group]:
            assert p.data.untyped_storage().data_ptr() == storage
            teacher = self._teacher_of[id(p)]
            view = flat.narrow(0, p.data.storage_offset(), p.numel()).view(p.shape)
            view.copy_(teacher.data)
            teacher.data = view
        ranks = zero.real_dp_process_group[group]
        n = flat.numel() // torch.distributed.get_world_size(ranks)
        mine = flat.narrow(0, torch.distributed.get_rank(ranks) * n, n)
        return flat, mine, ranks

    @torch.no_grad()
    def push(self) -> None:
        """Bring the fp32 master into the weights of the teacher's forward."""
        zero, state = self.shards.zero, self.shards.optimizer.state
        masters = [state[flat]["ema"] for flat in self.shards.flats()]
        if self.shards.stage == 0:
            for flat, ema in zip(self.shards.flats(), masters, strict=True):
                self._teacher_of[id(flat)].copy_(ema)
        elif self.shards.stage == 3:
            for parameters, ema in zip(zero.fp16_groups, masters, strict=True):
                offset = 0
                for p in parameters:
                    n = p.partition_numel()
                    self._teacher_of[id(p)].ds_tensor.data.copy_(ema.narrow(0, offset, n))
                    offset += n
        else:
            for (full, mine, ranks), ema in zip(self._parts, masters, strict=True):
                mine.copy_(ema)
                torch.distributed.all_gather_into_tensor(full, mine, group=ranks)

    def consolidated(self) -> dict[str, Tensor]:
        """The whole fp32 teacher on the CPU of every rank. A collective: call it on all ranks."""
        pieces = {p.name: p for p in self.shards.pieces}
        ema = self.shards.state("ema")
        device = self.shards.engine.device
        whole = {}
        for name, (student, _) in self.pairs.items():
            shape = getattr(student, "ds_shape", student.shape)
            tensor = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
            if name in pieces:
                tensor.narrow(0, pieces[name].first, pieces[name].count).copy_(ema[name])
            whole[name] = dist.all_sum(tensor).view(shape).cpu()
        return whole

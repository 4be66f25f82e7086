"""The DeepSpeed engine around student and teacher: the only importer of deepspeed.

forward(work) and backward(loss) per slot, then one step(): clip per module, agree on whether all
numbers are finite, AdamW with the teacher, push.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from poa_ds.engine.average import Teacher
from poa_ds.engine.networks import Networks
from poa_ds.engine.optim import EmaAdamW, Stretch, parameter_groups, stretch
from poa_ds.engine.partitions import Shards
from poa_ds.recipe.tree import Optimizer
from poa_ds.system import dist, rendezvous
from poa_ds.system.errors import UserError

T = TypeVar("T")

COUNTERS = ("global_steps", "global_samples", "skipped_steps")
# the scale follows from all four: it grows after enough steps without an overflow
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Update:
    """How a step moves the weights. momentum: of the moving average. part_factors: on the learning
    rate of some parts of the parameters (optim.part)."""

    lr: float
    weight_decay: float
    momentum: float
    part_factors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepReport:
    """What a step did. gradient_norms: per module, before clipping.

    finite: all loss terms and gradients of all ranks. applied: the weights moved (an fp16
    overflow skips a step although the losses are finite). stop: a rank asks for it.
    """

    gradient_norms: dict[str, float]
    finite: bool
    applied: bool
    stop: bool


def start_processes(device: str) -> None:
    """Join the process group, whatever launched this process. device: "cuda" or "cpu"."""
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rendezvous.prepare_environment()
    rendezvous.check_port(os.environ)
    deepspeed = _deepspeed()
    deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", verbose=False)


def _deepspeed():
    """The package; slow to import, and quiet about itself."""
    import logging

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # no just-in-time build, no shared memory left behind by a killed run
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class Engine:
    """A method's networks, cut up as `ds_config` says. See StepReport for what a step returns."""

    def __init__(self, networks: Networks, options: Optimizer, ds_config: dict) -> None:
        deepspeed = _deepspeed()
        if ds_config.get("zero_optimization", {}).get("stage", 0) == 3:
            # a block and a head are gathered as a whole, once for all students
            deepspeed.utils.set_z3_leaf_modules(networks, networks.leaves())
        optimizer = EmaAdamW(
            parameter_groups(networks.trained().items()),
            betas=(options.beta1, options.beta2),
            eps=options.eps,
        )
        self.networks = networks
        self.deepspeed, *_ = deepspeed.initialize(
            model=networks, optimizer=optimizer, config=ds_config
        )
        self.optimizer = optimizer
        self.shards = Shards(self.deepspeed)
        self._set_stretches(options)
        for flat in self.shards.flats():
            optimizer.make_state(flat)
        self.teacher = Teacher(self.shards, networks.averaged())
        clips = {"backbone": options.clip_backbone}  # heads of both kinds have the other limit
        modules = {group["module"] for group in self.shards.zero.param_groups}
        self.limits = {module: clips.get(module, options.clip_heads) for module in modules}
        if self.shards.stage in (1, 2):
            # it would take the norm of all gradients again, which _clip has taken per module
            unused = torch.zeros((), device=self.device)
            self.shards.zero.scaled_global_norm = lambda norm_type=2: unused
        self._fp16 = bool(ds_config.get("fp16", {}).get("enabled"))

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    @property
    def loss_scale(self) -> float | None:
        """The factor on fp16 gradients; None in other precisions."""
        return float(self.shards.loss_scale()) if self._fp16 else None

    def _set_stretches(self, options: Optimizer) -> None:
        depth = self.networks.backbone.decay_depth
        by_flat: dict[int, list[Stretch]] = {}
        for piece in self.shards.pieces:
            found = stretch(piece.name, piece.offset, piece.count, depth=depth, options=options)
            by_flat.setdefault(piece.flat, []).append(found)
        for i, flat in enumerate(self.shards.flats()):
            self.optimizer.set_stretches(flat, by_flat.get(i, ()))

    def forward(self, work: Callable[[Networks], T]) -> T:
        """work(networks), inside the engine's hooks."""
        return self.deepspeed(work)

    def backward(self, loss: Tensor) -> None:
        """One per slot; gradients are averaged over the slots of all ranks."""
        self.deepspeed.backward(loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # only counts the slot

    def step(
        self, update: Update, *, finite: Tensor | bool = True, stop: bool = False
    ) -> StepReport:
        """Move student and teacher, unless a loss (`finite`, of this rank) or gradient is not.

        stop: whether this rank asks all to stop; it costs no collective of its own.
        """
        norms, all_finite, any_stop = self._clip(finite, stop)
        self.optimizer.skip = not all_finite
        self.optimizer.ema_momentum = update.momentum
        self.optimizer.part_factors = update.part_factors
        for group in self.shards.zero.param_groups:
            group["lr"] = update.lr
            group["weight_decay"] = update.weight_decay if group["decays"] else 0.0
        self.deepspeed.step()
        applied = all_finite and self.deepspeed.was_step_applied()
        if applied:
            self.teacher.push()
        return StepReport(norms, all_finite, applied, any_stop)

    @torch.no_grad()
    def _clip(self, finite: Tensor | bool, stop: bool) -> tuple[dict[str, float], bool, bool]:
        """(norm per module over all ranks, all are finite, a rank asks to stop).

        The factors travel to the optimizer in the groups.
        """
        names = sorted(self.limits)
        sums = torch.zeros(len(names) + 2, device=self.device)
        sums[-2] = 1.0 - torch.as_tensor(finite, dtype=torch.float32, device=self.device)
        sums[-1] = float(stop)
        gradients: dict[str, list[Tensor]] = {name: [] for name in names}
        for i in range(len(self.shards.flats())):
            gradients[self.shards.group(i)["module"]] += self.shards.gradients(i)
        for place, name in enumerate(names):
            if gradients[name]:
                norms = torch._foreach_norm(gradients[name])
                sums[place] = torch.stack([n.float() for n in norms]).norm().square()
        sums = dist.all_sum(sums)
        norms = sums[:-2].sqrt() / self.shards.loss_scale()
        for group in self.shards.zero.param_groups:
            limit, norm = self.limits[group["module"]], norms[names.index(group["module"])]
            group["clip_coefficient"] = (limit / (norm + 1e-6)).clamp(max=1.0) if limit else None
        *measured, bad, stops = dist.on_host(torch.cat((norms, sums[-2:])))
        # a scaled fp16 gradient may overflow: DeepSpeed lowers the scale and skips the step
        all_finite = bad == 0 and (self._fp16 or all(map(math.isfinite, measured)))
        return dict(zip(names, measured, strict=True)), all_finite, stops > 0

    def counters(self) -> dict[str, dict[str, float]]:
        """DeepSpeed's own counters and, with fp16, the loss scale, for the checkpoint."""
        scale = read_numbers(self.shards.zero.loss_scaler, SCALER) if self._fp16 else {}
        return {"engine": read_numbers(self.deepspeed, COUNTERS), "loss_scaler": scale}

    def set_counters(self, counters: Mapping[str, Mapping[str, float]]) -> None:
        """Take them over from a checkpoint of any number of ranks and any precision."""
        set_numbers(self.deepspeed, counters["engine"])
        # counts a rank's slots: on another number of ranks a step would begin in the middle
        slots = self.deepspeed.gradient_accumulation_steps()
        self.deepspeed.micro_steps = self.deepspeed.global_steps * slots
        if self._fp16:
            set_numbers(self.shards.zero.loss_scaler, counters["loss_scaler"])

    def weights_were_loaded(self) -> None:
        """After the fp32 masters were written in place: bring them into the working weights."""
        zero = self.shards.zero
        if self.shards.stage == 3:
            zero.checkpoint_event_prologue()  # everything partitioned
            for low, master in zip(
                zero.fp16_partitioned_groups_flat, self.shards.flats(), strict=True
            ):
                low.data.copy_(master.data)
            zero.checkpoint_event_epilogue()  # gathers the persistent parameters again
        elif self.shards.stage:
            zero.update_lp_params()
        self.teacher.push()


def read_numbers(owner: object, names: Sequence[str]) -> dict[str, float]:
    """The attributes of those names that `owner` has."""
    return {name: getattr(owner, name) for name in names if hasattr(owner, name)}


def set_numbers(owner: object, numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        setattr(owner, name, value)


def pick_device() -> str:
    """ "cuda" where a device is visible, else "cpu"."""
    if torch.cuda.is_available():
        if torch.cuda.device_count() <= int(os.environ.get("LOCAL_RANK", "0")):
            raise UserError(
                f"local rank {os.environ['LOCAL_RANK']} has no GPU: "
                f"{torch.cuda.device_count()} visible"
            )
        return "cuda"
    return "cpu"

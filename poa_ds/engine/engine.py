"""The DeepSpeed engine around a method's networks: the only importer of deepspeed.

forward(work) and backward(loss) per slot, then one step(): clip per module, agree on whether all
numbers are finite, AdamW with the moving average, push.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from poa_ds.engine.networks import Networks
from poa_ds.engine.optim import EmaAdamW, Stretch, parameter_groups, stretch
from poa_ds.engine.partitions import Partitions
from poa_ds.engine.stages import STAGES
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


def start_processes(device: str, *, mlflow: bool = False) -> None:
    """Join the process group, whatever launched this process. device: "cuda" or "cpu".

    mlflow: whether rank 0 will use it: it is imported there and then, in the main thread.
    """
    if device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    rendezvous.prepare_environment()
    rendezvous.check_port(os.environ)
    if device == "cuda":
        # collectives of objects use the current device: all ranks' would be the first GPU
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed = _deepspeed(mlflow=mlflow and os.environ["RANK"] == "0")
    deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", verbose=False)


def _deepspeed(*, mlflow: bool = False):
    """The package; slow to import, and quiet about itself."""
    import logging

    # its autotuner, which no run uses, imports mlflow wherever that is installed
    here = mlflow or "mlflow" in sys.modules or "deepspeed" in sys.modules
    with nullcontext() if here else hidden("mlflow"):
        import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # no just-in-time build, no shared memory left behind by a killed run
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextmanager
def hidden(package: str) -> Iterator[None]:
    """Within it an import of the package, which nobody has imported yet, fails."""
    sys.modules[package] = None  # type: ignore[assignment] - Python's way to say so
    try:
        yield
    finally:
        del sys.modules[package]


class Engine:
    """A method's networks, cut up as `ds_config` says. See StepReport for what a step returns."""

    def __init__(self, networks: Networks, options: Optimizer, ds_config: dict) -> None:
        deepspeed = _deepspeed()
        number = ds_config.get("zero_optimization", {}).get("stage", 0)
        if number == 3:
            # a block and a head are gathered as a whole, once for all students
            deepspeed.utils.set_z3_leaf_modules(networks, networks.leaves())
        self.networks = networks
        self.optimizer = EmaAdamW(
            parameter_groups(
                networks.trained().items(),
                averaged=networks.averaged(),
                decayed=options.decayed,
            ),
            betas=(options.beta1, options.beta2),
            eps=options.eps,
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=networks, optimizer=self.optimizer, config=ds_config
        )
        self.stage = STAGES[number](self.deepspeed.optimizer, self.optimizer, networks)
        self.partitions = Partitions(self.stage, networks)
        self._set_stretches(options)
        clips = {"backbone": options.clip_backbone}  # heads of both kinds have the other limit
        modules = {group["module"] for group in self.optimizer.param_groups}
        self.limits = {module: clips.get(module, options.clip_heads) for module in modules}
        self._fp16 = bool(ds_config.get("fp16", {}).get("enabled"))

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    @property
    def loss_scale(self) -> float | None:
        """The factor on fp16 gradients; None in other precisions."""
        return float(self.stage.loss_scale()) if self._fp16 else None

    def _set_stretches(self, options: Optimizer) -> None:
        depth = self.networks.backbone.decay_depth
        by_flat: dict[int, list[Stretch]] = {}
        for part in self.partitions.parts:
            found = stretch(part.name, part.offset, part.count, depth=depth, options=options)
            by_flat.setdefault(part.flat, []).append(found)
        for i, flat in enumerate(self.stage.flats()):
            average = flat.detach() if self.stage.group(i)["averaged"] else None
            self.optimizer.make_state(flat, average)
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
        """Move weights and average, unless a loss (`finite`, of this rank) or gradient is not.

        stop: whether this rank asks all to stop; it costs no collective of its own.
        """
        norms, all_finite, any_stop = self._clip(finite, stop)
        self.optimizer.skip = not all_finite
        self.optimizer.ema_momentum = update.momentum
        self.optimizer.part_factors = update.part_factors
        for group in self.stage.zero.param_groups:
            group["lr"] = update.lr
            group["weight_decay"] = update.weight_decay if group["decays"] else 0.0
        self.deepspeed.step()
        moved = self.deepspeed.was_step_applied()
        if not all_finite and moved:  # it did not look at the numbers
            self.deepspeed.skipped_steps += 1
        applied = all_finite and moved
        if applied:
            self.stage.push()
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
        for i in range(len(self.stage.flats())):
            gradients[self.stage.group(i)["module"]] += self.stage.gradients(i)
        for place, name in enumerate(names):
            if gradients[name]:
                norms = torch._foreach_norm(gradients[name], dtype=torch.float32)
                sums[place] = torch.stack(norms).norm().square()
        sums = dist.all_sum(sums)
        norms = sums[:-2].sqrt() / self.stage.loss_scale()
        for group in self.stage.zero.param_groups:
            limit, norm = self.limits[group["module"]], norms[names.index(group["module"])]
            group["clip_coefficient"] = (limit / (norm + 1e-6)).clamp(max=1.0) if limit else None
        *measured, bad, stops = dist.on_host(torch.cat((norms, sums[-2:])))
        # a scaled fp16 gradient may overflow: DeepSpeed lowers the scale and skips the step
        all_finite = bad == 0 and (self._fp16 or all(map(math.isfinite, measured)))
        return dict(zip(names, measured, strict=True)), all_finite, stops > 0

    def counters(self) -> dict[str, dict[str, float]]:
        """DeepSpeed's own counters and, with fp16, the loss scale, for the checkpoint."""
        scale = read_numbers(self.stage.zero.loss_scaler, SCALER) if self._fp16 else {}
        return {"engine": read_numbers(self.deepspeed, COUNTERS), "loss_scaler": scale}

    def set_counters(self, counters: Mapping[str, Mapping[str, float]]) -> None:
        """Take them over from a checkpoint of any number of ranks and any precision."""
        set_numbers(self.deepspeed, counters["engine"])
        # counts a rank's slots: on another number of ranks a step would begin in the middle
        slots = self.deepspeed.gradient_accumulation_steps()
        self.deepspeed.micro_steps = self.deepspeed.global_steps * slots
        if self._fp16:
            set_numbers(self.stage.zero.loss_scaler, counters["loss_scaler"])

    def weights_were_loaded(self) -> None:
        """After the fp32 masters were written in place: bring them into the working weights."""
        self.stage.reload()
        self.stage.push()

    def deployed(self) -> dict[str, Tensor]:
        """What the method leaves, whole and in fp32, on the CPU of every rank. A collective."""
        return self.partitions.whole("ema" if self.networks.deployed == "average" else "fp32")


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
                f"{torch.cuda.device_count()} visible. Every process must see all GPUs of its host "
                "(srun: --gpus-per-node N, without --gpus-per-task and --gpu-bind)"
            )
        return "cuda"
    return "cpu"

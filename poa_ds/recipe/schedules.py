"""What changes from step to step, as pure functions of the step: no arrays, no state to save."""

from dataclasses import dataclass
from math import cos, pi


@dataclass(frozen=True)
class StepValues:
    """The numbers of one step; `last_layer_factor` multiplies the prototypes' learning rate.

    all_sizes: whether smaller students learn beside the intact one.
    """

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    last_layer_factor: float
    ibot_active: bool
    all_sizes: bool = True


def linear(step: int, steps: int, *, start: float, end: float) -> float:
    """Value `step` of `steps` values from `start` to `end`, both included (as numpy's linspace)."""
    assert 0 <= step < steps
    return start if steps == 1 else start + step * ((end - start) / (steps - 1))


def cosine(step: int, steps: int, *, start: float, end: float) -> float:
    """Half a cosine: `start` at step 0, `end` at step `steps`."""
    return end + 0.5 * (start - end) * (1 + cos(pi * step / steps))


def stretched(
    step: int, total_steps: int, *, start: float, end: float, stretch: float, warmup_steps: int = 0
) -> float:
    """A warm-up from 0 to `start`, then a cosine laid out over int(total / stretch) steps.

    It is cut at `total_steps`, where it has not reached `end` unless stretch is 1; from there on
    it is `end`. Source: published code (`iter_num_scale`); the paper does not mention it.
    """
    assert step >= 0 and 0 < stretch <= 1
    if step >= total_steps:
        return end
    if step < warmup_steps:
        return linear(step, warmup_steps, start=0.0, end=start)
    laid_out = int(total_steps / stretch) - warmup_steps
    return cosine(step - warmup_steps, laid_out, start=start, end=end)


@dataclass(frozen=True)
class Schedules:
    """All schedules of a run, in steps; `derived.schedules` makes them from a recipe in epochs.

    stretch: in (0, 1], for learning rate, weight decay and momentum alike. The learning rate is
    the scaled one. Values at and after `total_steps` are the end values.
    """

    total_steps: int
    warmup_steps: int
    freeze_steps: int
    ibot_start_step: int
    temperature_steps: int
    stretch: float
    lr: float
    min_lr: float
    weight_decay: float
    weight_decay_end: float
    momentum: float
    momentum_end: float
    temperature_start: float
    temperature: float
    alone_steps: int = 0  # at the start, of the intact student

    def at(self, step: int) -> StepValues:
        """The values of step `step` (from 0), in constant time."""
        total, stretch = self.total_steps, self.stretch
        return StepValues(
            lr=stretched(
                step,
                total,
                start=self.lr,
                end=self.min_lr,
                stretch=stretch,
                warmup_steps=self.warmup_steps,
            ),
            weight_decay=stretched(
                step, total, start=self.weight_decay, end=self.weight_decay_end, stretch=stretch
            ),
            momentum=stretched(
                step, total, start=self.momentum, end=self.momentum_end, stretch=stretch
            ),
            teacher_temperature=self.teacher_temperature(step),
            last_layer_factor=0.0 if step < self.freeze_steps else 1.0,
            ibot_active=step >= self.ibot_start_step,
            all_sizes=step >= self.alone_steps,
        )

    def teacher_temperature(self, step: int) -> float:
        """The temperature of the targets: linear over `temperature_steps`, then constant."""
        if step >= self.temperature_steps:
            return self.temperature
        return linear(
            step, self.temperature_steps, start=self.temperature_start, end=self.temperature
        )

"""AdamW over the flats of ZeRO, with a learning-rate factor per parameter and a moving average.

ZeRO hands an optimizer one flat tensor per parameter group, and every group costs collectives.
So layer-wise decay is not made of groups: each flat is cut into stretches of equal factor, and
each factor is one fused call on views. The fp32 average is a third state tensor, `ema`.
"""

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poa_ds.recipe.tree import Optimizer

STATE = ("exp_avg", "exp_avg_sq", "ema")


@dataclass(frozen=True)
class Stretch:
    """`count` elements of a flat that share a learning-rate factor.

    part: "last_layer" or "" ; the factor of a part can be changed from step to step.
    """

    offset: int
    count: int
    factor: float
    part: str = ""


def lr_factor(name: str, *, depth: int, layer_decay: float, patch_embed_factor: float) -> float:
    """The learning-rate factor of a parameter by its (our) name below `backbone.`.

    layer_decay ** (depth + 1 - layer): tokens and patches are layer 0, block k is layer k + 1, and
    so are its factors of a template;
    the final norm and the heads get 1 (docs/method.md 6).
    """
    if name.startswith("backbone.embed."):
        patch = patch_embed_factor if name.startswith("backbone.embed.patch.") else 1.0
        return layer_decay ** (depth + 1) * patch
    if block := re.match(r"backbone\.(?:blocks\.|template\.block_factors_)(\d+)", name):
        return layer_decay ** (depth - int(block[1]))
    return 1.0


def decays(name: str) -> bool:
    """Whether weight decay applies: not to biases, norms, LayerScale and factors of a template."""
    return not (name.endswith(".bias") or any(x in name for x in ("norm", "gamma", "factor")))


def is_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether it is a layer's matrix or kernel: no vector, token or table of positions."""
    return parameter.ndim > 1 and not name.endswith(("_token", "pos_embed", "position_bias"))


def part(name: str) -> str:
    """ "last_layer" for the prototypes, which are frozen in the first epoch."""
    return "last_layer" if name.endswith((".weight_g", ".weight_v")) else ""


def parameter_groups(
    student: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    averaged: Container[str],
    decayed: str = "published",
) -> list[dict]:
    """Few groups: (backbone, heads, ibot_heads) x (decayed, not) x (averaged, not).

    Keys `module`, `decays`, `averaged`. decayed: optimizer.decayed of the recipe.
    """
    groups: dict[tuple[str, bool, bool], list] = {}
    for name, p in student:
        decaying = decays(name) and (decayed == "published" or is_matrix(name, p))
        groups.setdefault((name.split(".")[0], decaying, name in averaged), []).append(p)
    return [
        {"params": params, "module": module, "decays": decaying, "averaged": is_averaged}
        for (module, decaying, is_averaged), params in groups.items()
    ]


def stretch(name: str, offset: int, count: int, *, depth: int, options: Optimizer) -> Stretch:
    """A piece of the named parameter with the factor that the options give it."""
    factor = lr_factor(
        name,
        depth=depth,
        layer_decay=options.layer_decay,
        patch_embed_factor=options.patch_embed_factor,
    )
    return Stretch(offset, count, factor, part(name))


def for_student(
    student: nn.Module, *, depth: int, options: Optimizer, average: nn.Module | None
) -> "EmaAdamW":
    """The optimizer of a Branch without DeepSpeed: plain parameters, their factors, no clipping.

    average: the teacher, from whose weights the moving averages start; None: nothing is averaged.
    Each step: set `lr` and (where `decays`) `weight_decay` of the groups, `ema_momentum` and
    `part_factors`, then step(); state[p]["ema"] is the teacher's weight after it.
    """
    start = {} if average is None else dict(average.named_parameters())
    optimizer = EmaAdamW(
        parameter_groups(student.named_parameters(), averaged=start, decayed=options.decayed),
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )
    for name, p in student.named_parameters():
        optimizer.make_state(p, start.get(name))
        whole = stretch(name, 0, p.numel(), depth=depth, options=options)
        optimizer.set_stretches(p, [whole])
    return optimizer


class EmaAdamW(torch.optim.Optimizer):
    """Decoupled AdamW; the moving average of the weights is part of its state.

    ema_momentum: average = momentum x average + (1 - momentum) x weights, in every step.
    part_factors: factor per part of the parameters, 0 leaves it unchanged (moments go on).
    skip: a step with this flag changes nothing. Group key clip_coefficient: None or 0-dim tensor.
    """

    def __init__(
        self,
        groups: Sequence[dict],
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        defaults = {"lr": 0.0, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(groups, {**defaults, "clip_coefficient": None})
        self.ema_momentum = 1.0
        self.part_factors: Mapping[str, float] = {}
        self.skip = False
        self._stretches: dict[int, tuple[Stretch, ...]] = {}

    def set_stretches(self, flat: Tensor, stretches: Iterable[Stretch]) -> None:
        """What the flat consists of, without its padding; neighbours of equal factor are joined."""
        joined: list[Stretch] = []
        for s in sorted(stretches, key=lambda s: s.offset):
            last = joined[-1] if joined else None
            if last and (last.factor, last.part) == (s.factor, s.part):
                if last.offset + last.count == s.offset:
                    joined[-1] = Stretch(last.offset, last.count + s.count, s.factor, s.part)
                    continue
            joined.append(s)
        self._stretches[id(flat)] = tuple(joined)

    def make_state(self, flat: Tensor, average: Tensor | None) -> None:
        """Zero moments, and what the average starts as; None: this flat has no average.

        Before the first step or loading.
        """
        value = flat.detach()
        self.state[flat] = {
            "step": torch.zeros((), dtype=torch.float32, device=flat.device),
            "exp_avg": torch.zeros_like(value),
            "exp_avg_sq": torch.zeros_like(value),
        }
        if average is not None:
            self.state[flat]["ema"] = average.detach().clone()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        assert closure is None
        if self.skip:
            return
        for group in self.param_groups:
            flats = [flat for flat in group["params"] if flat.grad is not None]
            if flats:
                self._update(flats, group)

    def _update(self, flats: Sequence[Tensor], group: dict) -> None:
        """One fused call for each factor of the group, over all its flats (stage 0 has many)."""
        states = [self.state[flat] for flat in flats]
        if group["clip_coefficient"] is not None:
            gradients = [flat.grad for flat in flats]
            torch._foreach_mul_(gradients, group["clip_coefficient"].to(gradients[0].dtype))
        by_factor: dict[float, list[tuple[Tensor, ...]]] = {}
        for flat, state in zip(flats, states, strict=True):
            tensors = (flat.detach(), flat.grad, state["exp_avg"], state["exp_avg_sq"])
            for s in self._stretches.get(id(flat), (Stretch(0, flat.numel(), 1.0),)):
                factor = s.factor * self.part_factors.get(s.part, 1.0)
                views = tensors
                if s.count < flat.numel():
                    views = tuple(t.view(-1).narrow(0, s.offset, s.count) for t in tensors)
                by_factor.setdefault(factor, []).append((*views, state["step"]))
        torch._foreach_add_([state["step"] for state in states], 1)
        for factor, members in by_factor.items():
            *views, steps = (list(column) for column in zip(*members, strict=True))
            # what torch.optim.AdamW(fused=True) calls, which counts the steps in every call
            torch._fused_adamw_(
                *views,
                [],
                steps,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"] * factor,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        averages = [state["ema"] for state in states if "ema" in state]
        if averages:  # of all or of none in a group
            weights = [flat.detach() for flat in flats]
            torch._foreach_lerp_(averages, weights, 1.0 - self.ema_momentum)

"""torch.compile of plain functions: a graph for all sizes, and no quiet return to what it replaces.

A rank that compiles makes the others wait, so a function is compiled with symbolic shapes: once for
the whole network and once for its slices, in each mode (gradients, autocast, types) that it meets.
What changes from step to step must come as a tensor (`varying`): numbers are compiled in.
"""

import time
from collections.abc import Callable
from functools import cache, wraps
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable)
LIMIT = 64  # graphs of one function
_on = False  # of this process, like torch.backends
_made: dict[Callable, Callable] = {}


def switch(on: bool) -> None:
    """Whether compilable functions are compiled from here on."""
    global _on
    _on = on
    if on:
        _watched()


def is_on() -> bool:
    return _on


class Watch:
    """Counts graphs and the seconds that they took, backward passes included."""

    def __init__(self) -> None:
        self.graphs, self.seconds, self._since, self._told = 0, 0.0, 0.0, 0

    def began(self, _: object) -> None:
        self._since = time.perf_counter()

    def ended(self, _: object) -> None:
        self.graphs += 1
        self.seconds += time.perf_counter() - self._since

    def news(self) -> str:
        """A sentence about what was compiled since it was last asked; empty: nothing."""
        found, self._told = self.graphs - self._told, self.graphs
        if not found:
            return ""
        return f"compiled {found} graphs, {self.graphs} in all in {self.seconds:.0f} s"


def news() -> str:
    """See Watch.news; of this process."""
    return _watched().news() if _on else ""


@cache
def _watched() -> Watch:
    """Sets the limit and begins to watch, once. Here because the compiler is slow to import."""
    import torch._dynamo.callback
    import torch._dynamo.config

    torch._dynamo.config.recompile_limit = LIMIT
    torch._dynamo.config.accumulated_recompile_limit = 16 * LIMIT
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    watch, handler = Watch(), torch._dynamo.callback.callback_handler
    handler.register_start_callback(watch.began)
    handler.register_end_callback(watch.ended)
    return watch


def compilable(function: Function) -> Function:
    """A function of tensors that is compiled where the recipe asks for it.

    RuntimeError: it met more than LIMIT kinds of arguments.
    """

    @wraps(function)
    def chosen(*arguments, **named):
        if not _on:
            return function(*arguments, **named)
        if function not in _made:
            _made[function] = torch.compile(function, dynamic=True, fullgraph=True)
        try:
            return _made[function](*arguments, **named)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"compile: {function.__name__} was compiled too often ({error}):"
                " continue with compile=false"
            ) from error

    return chosen


def varying(number: float, like: Tensor) -> float | Tensor:
    """The number; where functions are compiled, as a tensor () on the device of `like`."""
    if not _on:
        return number
    return torch.full((), number, dtype=torch.float32, device=like.device)

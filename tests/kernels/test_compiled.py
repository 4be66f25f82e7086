"""torch.compile of the plain functions: the same numbers, few graphs, and a limit that is heard."""

import re
from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from poa_ds.model.space import ElasticSpace, Subnet
from poa_kernels import compiled
from tests.kernels import test_step
from tests.kernels.test_step import agree, in_parts, step

SIZES = ElasticSpace((16, 32, 48, 64, 80), (1, 2))
MOST = 40  # graphs of all functions: see compiled.py


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Functions are compiled, all anew."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "_made", {})
    compiled.switch(True)
    compiled.news()
    yield
    compiled.switch(False)


@pytest.fixture
def counter(compiling: None, monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts graphs, which run as they are: the compiler's last part is left out."""
    found, real = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **named: real(*a, **named, backend=found))
    return found


def both_ways(size: Subnet, temperature: float) -> None:
    """A step of heads that are large, compiled and not."""
    ours = step("auto", size, 2, ibot=True, temperature=temperature)
    compiled.switch(False)
    plain = step("auto", size, 2, ibot=True, temperature=temperature)
    compiled.switch(True)
    agree(ours, plain)


@pytest.mark.slow
def test_ten_sizes_and_temperatures_are_compiled_as_two(
    counter: CompileCounterWithBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_step, "SPACE", SIZES)
    in_parts(monkeypatch)
    graphs = []
    for number, size in enumerate(SIZES.subnets()):
        both_ways(size, 0.04 + number / 1000)
        graphs.append(counter.frame_count)
    assert len(graphs) == 10 and graphs[1] == graphs[-1] <= MOST, graphs
    assert re.match(r"compiled \d+ graphs, \d+ in all in \d+ s", compiled.news())
    assert compiled.news() == ""


@pytest.mark.slow
def test_what_is_compiled_computes_the_same_step(
    compiling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_parts(monkeypatch)
    both_ways(Subnet(16, 1), 0.05)


@torch._dynamo.config.patch(recompile_limit=3)
def test_a_function_that_is_compiled_again_and_again_ends_the_run(
    counter: CompileCounterWithBackend,
) -> None:
    @compiled.compilable
    def tenfold(x: torch.Tensor) -> torch.Tensor:
        return x * 10

    assert tenfold(torch.ones(3)).sum() == 30 and tenfold(torch.ones(4)).sum() == 40
    with pytest.raises(RuntimeError, match=r"(?s)tenfold was compiled too often.*compile=false"):
        for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int32):
            tenfold(torch.ones(5, dtype=kind))


def test_nothing_is_compiled_unless_it_is_asked_for(counter: CompileCounterWithBackend) -> None:
    compiled.switch(False)
    assert compiled.compilable(lambda x: x + 1)(torch.ones(2)).sum() == 4
    assert compiled.varying(0.5, torch.ones(2)) == 0.5 and compiled.news() == ""
    assert counter.frame_count == 0


def test_a_function_that_cannot_be_one_graph_is_refused(counter: CompileCounterWithBackend) -> None:
    def reads(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum().item() > 0 else x

    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        compiled.compilable(reads)(torch.ones(2))

"""The profile of a step: its arithmetic over hand-made events, and a real one on the CPU."""

import pytest
import torch

from poa_ds.bench.profile import SPAN, STEPS, Event, device_use, profiled


def host(name: str, start: float, end: float) -> Event:
    return Event(name, on_device=False, start=start, end=end)


def gpu(name: str, start: float, end: float) -> Event:
    return Event(name, on_device=True, start=start, end=end)


# two steps, from 1,000 to 9,000 microseconds; the GPU is still busy when the host is done
EVENTS = [
    gpu("before the first step", 0, 1500),
    host("cudaLaunchKernel", 500, 510),
    host(SPAN, 1000, 4000),
    host("cudaLaunchKernel", 1100, 1110),
    host("cuLaunchKernelEx", 1200, 1210),
    host("cudaMemcpyAsync", 1300, 1310),
    host("cudaStreamSynchronize", 1400, 3000),
    gpu("a kernel", 2000, 3000),
    gpu("beside it on another stream", 2500, 3500),
    gpu("Memcpy HtoD (Pageable -> Device)", 3500, 3600),
    host(SPAN, 4500, 6000),
    host("cudaLaunchKernel", 5000, 5010),
    gpu("Memcpy DtoH (Device -> Pageable)", 5000, 5100),
    gpu("the last kernel", 6000, 9000),
    host("cudaDeviceSynchronize", 7000, 9000),
]


def test_the_use_of_a_gpu_is_counted_per_step():
    found = device_use(EVENTS)
    # of 8,000 microseconds busy are 500, then 1,500 by two streams, and 100, 100, 3,000
    assert (found.launches, found.waits, found.copies_to_device) == (1.5, 0.5, 0.5)
    assert found.busy == pytest.approx(5.2 / 2)
    assert found.idle == pytest.approx(2.8 / 2)


def test_the_order_of_the_events_does_not_matter():
    assert device_use(EVENTS[::-1]) == device_use(EVENTS)


def test_operators_of_a_step_on_the_cpu_are_counted_per_step():
    x = torch.randn(256, 256)
    found = profiled(lambda: [x @ x for _ in range(4)] + [x.tanh()], "cpu")
    calls = {o.name: o.calls for o in found.operators}
    assert (found.device, found.steps) == (None, STEPS)
    assert (calls["aten::mm"], calls["aten::tanh"]) == (4, 1)
    times = [o.milliseconds for o in found.operators]
    assert times == sorted(times, reverse=True) and times[-1] > 0
    assert SPAN not in calls

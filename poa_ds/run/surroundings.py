"""Where a run goes on, in words: ranks, hosts, devices, and which code. events.jsonl has it."""

import socket
from collections import Counter
from collections.abc import Sequence

import torch

from poa_ds.evaluate.latency.rows import processor
from poa_ds.system import dist
from poa_ds.system.versions import versions

Place = tuple[str, str]  # host, model of the device


def surroundings(device: torch.device) -> str:
    """The main rank's text, of all ranks; "" on the others. A collective."""
    places = dist.all_gather_objects((socket.gethostname(), processor(device.type)))
    return described(places) if dist.is_main() else ""


def described(places: Sequence[Place]) -> str:
    """`8 ranks on 2 hosts, 8 x NVIDIA H100; poa_ds 0.1.0, ...`: hosts are counted, not named."""
    ranks, hosts = len(places), len({host for host, _ in places})
    devices = Counter(device for _, device in places)
    code = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    return (
        f"{ranks} rank{'s' * (ranks > 1)} on {hosts} host{'s' * (hosts > 1)}, "
        f"{', '.join(f'{count} x {device}' for device, count in devices.items())}; {code}"
    )

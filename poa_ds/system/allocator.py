"""How PyTorch cuts the memory of a GPU; to be said before torch is imported."""

from collections.abc import MutableMapping

VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # until torch 2.9, and since


def prepare_allocator(environment: MutableMapping[str, str]) -> None:
    """Let its segments grow, unless the user has said something else.

    A step's activations come in some 40 sizes that change with every sub-network: in segments of
    fixed size they leave gaps, and giving those back waits for the device.
    """
    if not any(name in environment for name in VARIABLES):
        environment[VARIABLES[0]] = "expandable_segments:True"

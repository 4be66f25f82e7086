"""Two runs that compute the same sums in another order: how far apart fp32 lets them be.

AdamW divides each gradient by its own size, so a bound in units of the weights follows from
nothing: a gradient that is zero but for rounding moves its weight as far as any other. Weights are
therefore measured in learning rates. The gradient of the keys' biases IS zero but for rounding
(softmax takes no notice of a shift of all logits), so `sample` leaves them out; of all other
weights PART_OUTSIDE may be further apart than NOISE, none further than ANY.

Measured over 5 steps of the tiny ViT, one process against two ranks and between the instruction
sets of an AMD processor (`make test-processor`): 99 % of the weights within 8e-7 learning rates,
the worst 1.6e-5, terms and norms within 8e-7 of their value. 1 % of error in the moving average's
momentum, in beta1 or in weight decay takes most weights past NOISE.
"""

from collections.abc import Mapping

import numpy as np
import pytest
from torch import Tensor

EVERY = 23  # of a flat, one weight; not a divisor of any width
NOISE, PART_OUTSIDE, ANY = 3e-6, 0.01, 1e-3  # in sums of the learning rates so far
SUMS = 1e-5  # of the value of a loss or norm


def sample(weights: Mapping[str, Tensor], head_dim: int) -> str:
    """Every 23rd of the fp32 weights without the keys' biases, as hexadecimal text."""
    flats = []
    for name, tensor in sorted(weights.items()):
        if name.endswith("qkv.bias") and tensor.numel() % (3 * head_dim) == 0:  # (q, k, v)
            tensor = tensor.view(-1, 3, head_dim)[:, [0, 2]]
        flats.append(tensor.detach().float().numpy().ravel())
    return np.concatenate(flats)[::EVERY].tobytes().hex()


def apart(got: str, wanted: str, learning_rates: float) -> np.ndarray:
    """How many learning rates lie between two samples, beyond two roundings of the weight."""
    a, b = (np.frombuffer(bytes.fromhex(text), np.float32) for text in (got, wanted))
    far = np.abs(a.astype(np.float64) - b) - 2 * np.spacing(np.abs(b))
    return far.clip(min=0) / learning_rates


def assert_same_run(records: list[dict], wanted: list[dict]) -> None:
    """Records of the worker's steps agree: sizes exactly, sums and weights as far as fp32 does."""
    for got, expected in zip(records, wanted, strict=True):
        assert got["sizes"] == expected["sizes"]
        for key in ("terms", "norms"):
            assert got[key] == pytest.approx(expected[key], rel=SUMS, abs=1e-9), key
        if not expected["learning_rates"]:  # nothing has moved yet
            assert got["teacher"] == expected["teacher"]
            continue
        far = apart(got["sample"], expected["sample"], expected["learning_rates"])
        assert (far > NOISE).mean() <= PART_OUTSIDE and far.max() <= ANY, (
            f"{(far > NOISE).mean():.2%} of the weights are more than {NOISE:g} learning rates "
            f"apart, the worst {far.max():.1e}"
        )

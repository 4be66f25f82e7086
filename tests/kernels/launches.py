"""What Triton would compile for the operators' launches on a chip that is not here.

python -m tests.kernels.launches CHIP: prints, as JSON, the launches that aot.py does not compile.
Triton believes that the chip is there and is stopped before it compiles; tensors stay on the CPU
and are never written.
"""

import json
import random
import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from poa_kernels import add_ln, aot, attention, dispatch, photometric, prototype_ce, rope, sinkhorn
from poa_kernels.gelu import gelu
from poa_kernels.prototype_ce import Target
from poa_kernels.two_stream_linear import two_stream_linear

DIM = 1024
Launch = tuple  # (kernel, types, constants, aligned arguments, warps, stages)


class Absent:
    """Triton's driver of a chip that is not here."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def launch(kernel, types: dict, constants: dict, aligned: Iterable[str], *options: int) -> Launch:
    name = f"{kernel.fn.__module__}.{kernel.fn.__name__}"
    return name, *(tuple(sorted(x)) for x in (types.items(), constants.items(), aligned)), options


def known(chip: str) -> set[Launch]:
    """What aot.py compiles."""
    found = set()
    for case in aot.cases(chip):
        types = {n: case.types[n] for n in case.kernel.arg_names if n not in case.constants}
        aligned = [n for n, t in types.items() if t.startswith("*") or n in case.sixteens]
        constants = dict(case.constants)
        found.add(launch(case.kernel, types, constants, aligned, case.num_warps, case.num_stages))
    return found


def seen(made: set[Launch]):
    """A hook that notes each launch and stops Triton there."""

    def hook(*, fn, compile: dict, **_: object) -> bool:
        names = list(compile["signature"])
        types = {n: t for n, t in compile["signature"].items() if t != "constexpr"}
        constants = {names[place]: x for (place,), x in compile["constants"].items()}
        aligned = [names[place] for (place,), x in compile["configs"][0].items() if x]
        options = compile["num_warps"], compile["num_stages"]
        made.add(launch(fn.jit_function, types, constants, aligned, *options))
        return True

    return hook


def leaf(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def back(*outputs: Tensor) -> None:
    torch.autograd.backward(outputs, [torch.zeros_like(y) for y in outputs])


def linears(width: int, rows: tuple[int, int]) -> None:
    for up, down in ((3, 1), (1, 1), (4, 1), (1, 4)):
        streams = leaf(rows[0], down * DIM), leaf(rows[1], down * width)
        outs = up * DIM, up * width
        back(*two_stream_linear(streams, leaf(up * DIM, down * DIM), leaf(up * DIM), outs))


def block(width: int, rows: int, stream: torch.dtype) -> None:
    """stream: of what the branches are added to."""
    kept = torch.arange(max(rows * 4 // 5, 1))
    kept = add_ln.Rows.of(kept, rows, torch.ones(len(kept)))
    gamma, weight, bias = leaf(DIM), leaf(DIM), leaf(DIM)
    x = leaf(rows, width, dtype=stream)
    x, y = add_ln.norm_rows(x, weight, bias, eps=1e-6, taken=kept)
    x, y = add_ln.add_norm_rows(x, y, gamma, weight, bias, eps=1e-6, added=kept, taken=kept)
    back(add_ln.add_rows(x, y, gamma, added=kept))
    back(gelu(leaf(rows, 4 * width), leaf(4 * DIM)))
    back(attention.attention(leaf(37 * rows, 3 * width), [(rows, 37)], 64))
    places = torch.zeros(2, 36, 32)
    back(rope.rotate(leaf(37 * rows, 3 * width), [(rows, 37)], 64, [places]))


def losses(rows: int, shown: int) -> None:
    prototypes, bias = leaf(8192, 256), torch.zeros(8192)
    teacher = [torch.zeros(n, 256, dtype=torch.float16) for n in (shown, 8192)]
    one, two = (torch.zeros(rows, n, dtype=torch.int32) for n in (1, 2))
    patches = [Target(*teacher, 0.06, bias, one)]
    classes = [Target(*teacher, 0.06, bias, two), Target(*teacher, 0.1, None, one)]
    for targets in (patches, classes):
        back(prototype_ce.prototype_ce(leaf(rows, 256), prototypes, targets, 0.1))
    scores = teacher[0] @ teacher[1].t()
    sinkhorn.column_mass(scores, 0.06, bias)
    sinkhorn.softmax_mass(scores, 0.06, bias)


def colours(count: int, side: int) -> None:
    no, none = torch.zeros(count, dtype=torch.bool), torch.full((count, 4), -1, dtype=torch.int32)
    changes = photometric.Changes(torch.ones(count, 4), none, no, torch.zeros(count), no)
    crops = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    photometric.photometric(crops, changes, taps=9, mean=(0, 0, 0), std=(1, 1, 1))


def main() -> None:
    chip, made = sys.argv[1], set()
    driver.set_active(Absent(aot.CHIPS[chip]))
    knobs.runtime.jit_cache_hook = seen(made)
    dispatch.unable, dispatch.chip = lambda device: "", lambda device: chip
    dispatch.select("triton", "cpu")
    rng = random.Random(0)
    for width, uses in ((384, 2), (640, 4), (1024, 2)):
        for _ in range(uses):
            rows = rng.randint(1, 40), rng.choice((1, 16, 33))
            linears(width, rows)
            for stream in (torch.bfloat16, torch.float32):
                block(width, rows[1], stream)
    choose = dispatch.choose
    dispatch.choose = lambda *_, **__: "descriptors"
    linears(640, (7, 16))
    dispatch.choose = choose
    for rows in (1, 16, 37):
        losses(rows, rng.randint(1, 20))
    for count, side in ((3, 224), (16, 96)):
        colours(count, side)
    print(json.dumps({"launches": len(made), "missing": sorted(map(str, made - known(chip)))}))


if __name__ == "__main__":
    main()

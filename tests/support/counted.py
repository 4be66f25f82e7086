"""A GPU that is not there: tensors on `cuda` without contents, and a count of what is done to them.

Tensors of the host stay real, so that draws and numbers of rows are what they would be. PyTorch's
backward pass asks the driver for its streams, so it runs on hollow tensors of the CPU instead.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import poa_ds
import poa_kernels
from poa_kernels import dispatch

# they make a record, not a kernel
VIEWS = """device view reshape _unsafe_view t transpose permute slice select split unbind
split_with_sizes expand unsqueeze squeeze narrow as_strided detach alias unflatten flatten chunk
diagonal lift_fresh lift_fresh_copy _reshape_alias empty new_empty empty_like empty_strided
new_empty_strided""".split()

# of an installation or a checkout, whatever the folders above it are called
PACKAGES = tuple(Path(module.__file__).parent for module in (poa_ds, poa_kernels))


class Counted(TorchDispatchMode):
    """Runs what touches the hollow device hollow, the rest as it is, and keeps count.

    launches: of kernels, by operator. faults: "what, where" of each operation that mixes devices,
    waits for the device, or waits for a transfer to it. host: operations on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.host: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.bytes_moved = 0
        self.pinned: dict[int, torch.UntypedStorage] = {}  # kept: an address may be taken again

    def clear(self) -> None:
        for counter in (self.launches, self.host, self.faults):
            counter.clear()
        self.bytes_moved = 0

    def pin(self, x: Tensor) -> Tensor:
        """What `x.pin_memory()` gives here."""
        storage = x.untyped_storage()
        self.pinned[storage.data_ptr()] = storage
        return x

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        name = function.overloadpacket.__name__
        wanted = kwargs.get("device")
        if not any(isinstance(x, FakeTensor) for x in given) and (
            wanted is None or torch.device(wanted).type == "cpu"
        ):
            if name not in VIEWS:
                self.host[name] += 1
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        found = function(*args, **kwargs)
        made = [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]
        copies = name in ("_to_copy", "copy_")
        devices = {x.device.type for x in [*given, *made] if x.dim() or copies}
        if copies and len(devices) > 1:
            self._copied(function, given, args, kwargs)
        elif len(devices) > 1:
            self.faults[f"{name} mixes devices, {where()}"] += 1
        elif name in VIEWS or function.is_view:
            return found
        self.launches[name] += 1
        self.bytes_moved += sum(x.numel() * x.element_size() for x in [*given, *made])
        return found

    def _copied(self, function, given: list[Tensor], args: tuple, kwargs: dict) -> None:
        name, source = function.overloadpacket.__name__, given[-1]
        waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
        if source.device.type == "cpu" and not waits:
            waits = source.untyped_storage().data_ptr() not in self.pinned
        if waits:
            size = source.numel() * source.element_size()
            self.faults[f"a copy of {size} bytes waits, {where()}"] += 1


def where() -> str:
    """The innermost line of this project that is being run."""
    return innermost(traceback.extract_stack(sys._getframe(2)), PACKAGES) or "in the test"


def innermost(frames: traceback.StackSummary, packages: Iterable[Path]) -> str | None:
    """`package/file:line` of the last frame that is in one of these folders of packages."""
    for frame in reversed(frames):
        for package in packages:
            if (file := Path(frame.filename)).is_relative_to(package):
                return f"{package.name}/{file.relative_to(package).as_posix()}:{frame.lineno}"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """What PyTorch takes on a GPU, and does not where there is none."""
    if attn_mask is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)[0]
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, attn_mask, True)[0]


@contextmanager
def counted(hollow: FakeTensorMode) -> Iterator[Counted]:
    """All operations inside are counted; what reads a value of a hollow tensor fails.

    What `kernels: auto` runs where nothing was measured, as in the interpreter's table.
    """
    count = Counted()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(dispatch, "chip", lambda device: "interpreter"))
        stack.enter_context(mock.patch.object(dispatch, "unable", lambda device: "a hollow GPU"))
        stack.callback(dispatch._choose.cache_clear)
        dispatch._choose.cache_clear()
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", attention))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda x: count.pin(x)))
        stack.enter_context(hollow)
        stack.enter_context(count)
        yield count

"""What the ranks of test_plan.py run: real engines and steps, of which every byte is counted.

python -m tests.distributed.programs.weigh OUT \\
    '{"recipes": {"vit": {}}, "stages": [1, 2], "bucket": 1000}'
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from poa_ds.checkpoint import state as checkpoint
from poa_ds.engine import engine
from poa_ds.engine.networks import Networks
from poa_ds.recipe.tree import Recipe
from poa_ds.system import dist
from tests.distributed.programs.worker import SLOTS, Run, made_batch, recipe_with

KINDS = {
    "all_reduce": "reduced",
    "reduce_scatter_tensor": "scattered",
    "all_gather_into_tensor": "gathered",
    "all_gather_coalesced": "gathered",
}


def weigh(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the memory that the tensors lie in, each piece of memory once."""
    storages = [t.untyped_storage() for t in tensors if t is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def weights(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Bytes of whole weights and of ZeRO-3's parts of them."""
    parts = [p.ds_tensor.data for p in parameters if hasattr(p, "ds_tensor")]
    return weigh([*(p.data for p in parameters), *parts])


def carried_by(argument: object) -> int:
    """Bytes of a collective's argument, a tensor or a list of them."""
    tensors = argument if isinstance(argument, list | tuple) else [argument]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


class Collectives:
    """Counts what collectives carry: the larger of input and output of each call."""

    def __init__(self) -> None:
        from deepspeed.comm.torch import TorchBackend

        self.bytes = dict.fromkeys(KINDS.values(), 0)
        self.inside = False  # DeepSpeed's call one of torch's
        for name, kind in KINDS.items():
            self._watch(torch.distributed, name, kind)
            self._watch(TorchBackend, name, kind)

    def _watch(self, owner: object, name: str, kind: str) -> None:
        carry = getattr(owner, name, None)
        if carry is None:
            return

        def counted(*arguments: object, **named: object) -> object:
            outer, self.inside = self.inside, True
            try:
                return carry(*arguments, **named)
            finally:
                self.inside = outer
                if not outer:
                    self.bytes[kind] += max(map(carried_by, (*arguments, *named.values())))

        setattr(owner, name, counted)


class Weighed(Run):
    """An engine whose steps are stopped to weigh what is there."""

    def __init__(self, stage: int, recipe: Recipe, bucket: int) -> None:
        super().__init__(stage, recipe, zero={"reduce_bucket_size": bucket})
        self.found: dict[str, float] = {"gradients": 0}
        self.saved: list[dict] = []
        self.students = [*self.engine.networks.trained().values()]
        self.teachers = [teacher for _, teacher in self.engine.networks.averaged().values()]
        forward, backward, step = self.engine.forward, self.engine.backward, self.engine.step

        def weighed_forward(work: Callable[[Networks], object]) -> object:
            held: list[Tensor] = []

            def hold(tensor: Tensor) -> Tensor:
                ours = {p.data.untyped_storage().data_ptr() for p in self.students}
                if tensor.untyped_storage().data_ptr() not in ours:
                    held.append(tensor)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
                result = forward(work)
            if held:
                self.saved.append({"bytes": weigh(held)})
            return result

        def weighed_backward(loss: Tensor) -> None:
            backward(loss)
            self._gradients([getattr(p, "grad", None) for p in self.students])

        def weighed_step(*arguments: object, **named: object) -> object:
            self._gradients(self._sums())
            return step(*arguments, **named)

        self.engine.forward = weighed_forward
        self.engine.backward, self.engine.step = weighed_backward, weighed_step

    def _gradients(self, tensors: list[Tensor | None]) -> None:
        self.found["gradients"] = max(self.found["gradients"], weigh(tensors))

    def _sums(self) -> list[Tensor]:
        zero, stage = self.engine.stage.zero, self.engine.deepspeed.zero_optimization_stage()
        if stage == 0:
            return [p.grad for p in self.students]
        if stage == 3:
            return [zero.grad_partitions_flat_buffer]
        return [g for group in zero.averaged_gradients.values() for g in group]

    def _frozen(self) -> list[torch.nn.Parameter]:
        embedder = getattr(self.stepper.method, "embedder", None)
        return [*embedder.network.parameters()] if embedder else []

    def one_step(self, at: int) -> None:
        own, self.saved = SLOTS // dist.world_size(), []
        batches = [made_batch(self.recipe, at, dist.rank() * own + i) for i in range(own)]
        result = self.stepper.step(batches, self.schedules.at(at))
        for record, size, batch in zip(self.saved, result.sizes, batches, strict=True):
            record |= {"size": str(size), "masked": len(batch.mask_indices)}

    def weighed(self) -> dict[str, float]:
        """Bytes by part, after a step."""
        flats, state = self.engine.stage.flats(), self.engine.optimizer.state
        moments = [t for f in flats for key, t in state[f].items() if key != "step"]
        masters = flats if self.engine.stage.zero is not self.engine.optimizer else []
        return self.found | {
            "weights": weights(self.students),
            "teacher": weights([*self.teachers, *self._frozen()]),
            "optimizer": weigh([*masters, *moments]),
        }


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    collectives, result = Collectives(), {}
    for name, changes in wanted["recipes"].items():
        recipe = recipe_with(**changes)
        for stage in wanted["stages"]:
            run = Weighed(stage, recipe, wanted["bucket"])
            if dist.world_size() > 1:
                run.one_step(2)  # ZeRO-3 learns the order of the modules
            collectives.bytes = dict.fromkeys(collectives.bytes, 0)
            run.one_step(3)
            carried, found = dict(collectives.bytes), run.weighed()
            run.save(out / f"{name}{stage}", 4)
            folder, _ = checkpoint.find_together(out / f"{name}{stage}")
            files = [path.stat().st_size for path in folder.iterdir()]
            every = dist.all_gather_objects(found)
            result[f"{name}/{stage}"] = {
                "state": {key: max(each[key] for each in every) for key in found},
                "checkpoint": sum(files),
                "carried": carried,
                "saved": run.saved,
            }
    if dist.is_main():
        (out / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

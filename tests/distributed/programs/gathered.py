"""What two ranks of the test of ZeRO-3's memory run: one forward pass, then a look at the weights.

python -m tests.distributed.programs.gathered OUT '{"kernels": "auto", "recipe": {}}'
"""

import json
import sys
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from poa_ds.engine import engine
from poa_ds.engine.engine import Engine
from poa_ds.methods import poa as branches
from poa_ds.recipe import derived, ds_json
from poa_ds.run import step
from poa_ds.system import dist
from poa_kernels import dispatch
from tests.distributed.programs.worker import made_batch, recipe_with


def recorded(block: type, seen: dict[int, tuple[StorageWeakRef, int]]) -> None:
    """Notes the gathered weights of every block that is entered."""
    real = block.forward

    def forward(self, *streams, plan):
        if torch.is_grad_enabled():
            for parameter in self.parameters():
                storage = parameter.data.untyped_storage()
                seen[len(seen)] = (StorageWeakRef(storage), storage._cdata, storage.nbytes())
        return real(self, *streams, plan=plan)

    block.forward = forward


def main() -> None:
    out, wanted = Path(sys.argv[1]), json.loads(sys.argv[2])
    engine.start_processes("cpu")
    dispatch.select(wanted["kernels"], "cpu")
    recipe = recipe_with(**wanted["recipe"])
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    zero |= {"stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0}
    file = ds_json.resolved(recipe, {"zero_optimization": zero}, dist.world_size())
    poa = step.student_and_teacher(recipe)
    trained = Engine(poa, recipe.optimizer, file)
    seen: dict = {}
    recorded(type(poa.student.backbone.blocks[0]), seen)
    batch, space = made_batch(recipe, 0, 0), derived.space(recipe)

    def work(poa):
        shown = branches.teach(poa.teacher, batch, space.intact, ibot=True)
        assignments = branches.balance([shown], 0.06)[0]
        subnets = (space.intact, space.smallest)
        terms = branches.poa_terms(poa.student, batch, assignments, subnets, ibot=True)
        return terms.total(intact_weight=0.8)

    loss = trained.forward(work)
    whole = {cdata: count for _, cdata, count in seen.values()}
    held = {cdata: count for ref, cdata, count in seen.values() if not ref.expired()}
    trained.backward(loss)
    if dist.is_main():
        result = {"gathered": sum(whole.values()), "held": sum(held.values())}
        (out / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

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
from poa_ds.methods import targets
from poa_ds.methods.method import method
from poa_ds.methods.terms import slot_terms
from poa_ds.recipe import derived, ds_json
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
    networks = method(recipe).networks()
    trained = Engine(networks, recipe.optimizer, file)
    seen: dict = {}
    recorded(type(networks.backbone.blocks[0]), seen)
    batch, space = made_batch(recipe, 0, 0), derived.space(recipe)

    def work(networks):
        shown = targets.teach(networks.teacher, batch, space.intact, ibot=True)
        assignments = targets.balance([shown], 0.06, iterations=3)[0]
        subnets = (space.intact, space.smallest)
        terms = slot_terms(
            networks.student, batch, assignments, subnets, ibot=True, temperature=0.1
        )
        return terms.total((0.8, 0.2), recipe.objective)

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

"""k-NN on several real gloo ranks gives the very numbers of one process."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch.distributed
import torch.multiprocessing

from poa_ds import cli
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import results
from poa_ds.evaluate.features import Readout, random_weights
from poa_ds.evaluate.knn import answers_of_sets, knn, raw_pixel_floor
from poa_ds.evaluate.knn_protocol import Asked, KnnProtocol
from tests.evaluate.test_knn import make_run, tiny
from tests.support.shards import make_shards

# (bank images, query images, batch size): ranks with a short, an empty, and no block at all
CASES = ((40, 25, 7), (40, 20, 10), (5, 25, 30), (13, 3, 2))


def accuracies(folder: Path, case: tuple[int, int, int]) -> list[tuple[str, dict[int, float]]]:
    bank_images, query_images, batch = case
    recipe = tiny(
        f"evaluation.query_images={query_images}",
        f"evaluation.bank_images={bank_images if bank_images >= 20 else 0}",
        f"evaluation.batch_size={batch}",
    )
    bank = ShardFolder.open(folder / ("train" if bank_images >= 20 else f"bank{bank_images}"))
    protocol = KnnProtocol.of(bank, ShardFolder.open(folder / "val"), recipe.evaluation)
    model = random_weights(recipe)
    readout = Readout.of(recipe, "cpu")
    found = knn(model, model.space.subnets(), protocol, readout)
    pixels = raw_pixel_floor(protocol, readout)
    parts = [torch.arange(len(protocol.bank.rows)) % 3 == part for part in (0, 1)]  # few labels
    few = [Asked(protocol.queries, bank=part) for part in parts]
    [of_few] = answers_of_sets(model, model.space.subnets()[:1], protocol, few, readout).values()
    return [
        *((str(subnet), values) for subnet, values in found.items()),
        ("pixels", pixels),
        *(("few", answered.percent()) for answered in of_few),
    ]


def work(rank: int, ranks: int, port: int, folder: Path) -> None:
    environment = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    assert cli.main(["eval", "knn", str(folder), "--sizes", "all", "--floors"]) == 0
    assert not torch.distributed.is_initialized()
    torch.distributed.init_process_group(
        "gloo", f"file://{folder / 'store'}", world_size=ranks, rank=rank
    )
    found = [accuracies(folder, case) for case in CASES]
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_ranks_gives_the_same_numbers(tmp_path: Path, ranks: int) -> None:
    make_run(tmp_path)
    for images in (5, 13):
        make_shards(tmp_path / f"bank{images}", images)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (ranks, port, tmp_path), nprocs=ranks)
    (together,) = results.read(tmp_path / "knn.jsonl")
    wanted = json.loads(json.dumps([accuracies(tmp_path, case) for case in CASES]))
    for rank in range(ranks):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == wanted
    assert cli.main(["eval", "knn", str(tmp_path), "--sizes", "all", "--floors"]) == 0
    assert results.read(tmp_path / "knn.jsonl")[1] == together
    of_ranks, alone = (tmp_path / "knn_right.jsonl").read_text().splitlines()
    assert of_ranks == alone  # query by query

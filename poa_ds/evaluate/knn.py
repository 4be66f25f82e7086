"""k-NN accuracy of many sizes at once: every image is decoded once, all sizes run on it.

The protocol of the field (docs/method.md 9): short side to 256 (bicubic), centre 224, unit class
token, cosine, weights softmax(similarity / 0.07) over the largest k. All ranks take part.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from poa_ds.checkpoint.deployed import find_teacher, load_teacher
from poa_ds.data.places import open_folder
from poa_ds.data.store.index import ShardFolder
from poa_ds.evaluate import results
from poa_ds.evaluate.knn_protocol import Comparison, Progress
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.recipe import checks
from poa_ds.recipe.backbone import backbone
from poa_ds.recipe.tree import Evaluation, Recipe
from poa_ds.system import dist, paths, rendezvous
from poa_ds.system.errors import UsageError
from poa_ds.system.progress import progress
from poa_ds.system.run_folder import RunFolder

FEATURE_BYTES = 8 << 30  # of features that a rank keeps at a time; more sizes take more passes
PIXEL_SIDE = 32  # raw pixels are compared at this size or below


def features(model: ElasticBackbone, images: Tensor, subnet: Subnet) -> Tensor:
    """Class tokens (B, width) of normalised float images (B, 3, S, S)."""
    return model(images, subnet)[:, 0]


def knn(
    model: ElasticBackbone,
    subnets: Sequence[Subnet],
    bank: ShardFolder,
    queries: ShardFolder,
    options: Evaluation,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    precision: str = "fp32",
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[Subnet, dict[int, float]]:
    """Percent top-1 of each size for each k of `options`, the same on every rank. A collective.

    options: the recipe's section `evaluation`; precision: "bf16" and "fp16" compute the features
    in autocast. A k beyond the bank takes the whole bank. NaN where features are not finite.
    Memory: FEATURE_BYTES of features on the CPU; beyond that, images are read once per group of
    sizes.
    """
    comparison, device = Comparison.of(bank, queries, options), torch.device(device)
    rows, was_training = comparison.rows_per_rank(), model.training
    shift, scale = (255 * torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))
    found: dict[Subnet, dict[int, float]] = {}
    model.eval()
    for group in _groups(subnets, lambda subnet: 4 * rows * model.feature_width(subnet)):

        def encode(images: Tensor, group: Sequence[Subnet] = group) -> list[Tensor]:
            normalised = (images.float() - shift) / scale
            with _autocast(device, precision):
                return [features(model, normalised, subnet) for subnet in group]

        measured = comparison.measure(
            encode, len(group), device=device, workers=workers, progress=progress
        )
        found.update(zip(group, measured, strict=True))
    model.train(was_training)
    return found


def _groups(subnets: Sequence[Subnet], cost: Callable[[Subnet], int]) -> list[list[Subnet]]:
    """The sizes in order, cut where the features of a group would pass FEATURE_BYTES."""
    groups: list[list[Subnet]] = [[]]
    for subnet in subnets:
        if groups[-1] and sum(map(cost, [*groups[-1], subnet])) > FEATURE_BYTES:
            groups.append([])
        groups[-1].append(subnet)
    return groups


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def raw_pixel_floor(
    bank: ShardFolder,
    queries: ShardFolder,
    options: Evaluation,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: Progress | None = None,
) -> dict[int, float]:
    """Percent top-1 for each k with the pixels themselves as features. A collective.

    Crops above PIXEL_SIDE are shrunk to it first.
    """

    def encode(images: Tensor) -> list[Tensor]:
        pixels = images.float()
        if pixels.shape[-1] > PIXEL_SIDE:
            pixels = F.interpolate(pixels, (PIXEL_SIDE,) * 2, mode="bicubic", antialias=True)
        return [pixels.flatten(1)]

    comparison = Comparison.of(bank, queries, options)
    return comparison.measure(
        encode, 1, device=torch.device(device), workers=workers, progress=progress
    )[0]


def random_weights(recipe: Recipe) -> ElasticBackbone:
    """The recipe's backbone before any training: the other floor, when `knn` measures it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return backbone(recipe)


def knn_flops(model: ElasticBackbone, subnets: Sequence[Subnet], images: int, size: int) -> float:
    """Floating-point operations of the features of `images` crops of `size` px, all sizes."""
    return images * sum(model.flops(subnet, size) for subnet in subnets)


def of_recipe(recipe: Recipe, device: torch.device | str) -> dict[str, Any]:
    """The keyword arguments of `knn` that a recipe determines. On a CPU: always fp32."""
    gpu = torch.device(device).type == "cuda"
    return {
        "mean": recipe.augmentation.mean,
        "std": recipe.augmentation.std,
        "precision": recipe.precision if gpu else "fp32",
        "workers": recipe.data.workers,
    }


def protocol(
    bank: ShardFolder, queries: ShardFolder, options: Evaluation, *, precision: str
) -> dict[str, Any]:
    """What must be known to compare the numbers: stored beside them."""
    comparison = Comparison.of(bank, queries, options)
    used = {"bank": comparison.bank, "queries": comparison.queries}
    sets = {
        name: {"images": len(s.rows), "of": len(s.folder), "index_sha256": s.folder.hash}
        for name, s in used.items()
    }
    return {
        **sets,
        "feature": "class token, unit length",
        "k": sorted(set(options.k)),
        "k_at_most": len(comparison.bank.rows),  # a larger k takes the whole bank
        "temperature": options.temperature,
        "resize": options.resize,
        "crop": options.crop,
        "precision": precision,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds eval knn`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument("--sizes", help="all, or names and WIDTHxDEPTH, by commas (recipe's)")
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--queries", type=paths.place, help="shard folder (recipe's evaluation.queries)"
    )
    parser.add_argument(
        "--bank", type=paths.place, help="shard folder (recipe's evaluation.bank, or data.train)"
    )
    parser.add_argument("--query-images", type=int, help="evenly spread; 0 = all (recipe's)")
    parser.add_argument("--bank-images", type=int, help="evenly spread; 0 = all (recipe's)")
    parser.add_argument("--batch-size", type=int, help="images at a time (recipe's)")
    parser.add_argument("--workers", type=int, help="loader processes per rank (recipe's)")
    parser.add_argument("--floors", action="store_true", help="also raw pixels and random weights")


def main_knn(args: argparse.Namespace) -> int:
    """Measure, print a table, add a row to the run's knn.jsonl. Runs under torchrun as well."""
    with _all_ranks() as device:
        model, recipe, step = load_teacher(args.run, args.step)
        recipe = _overridden(recipe, args)
        subnets = model.space.select(args.sizes or recipe.evaluation.sizes)
        options, settings = recipe.evaluation, of_recipe(recipe, device)
        bank = open_folder(options.bank or recipe.data.train, recipe.data)
        queries = open_folder(options.queries, recipe.data)
        Comparison.of(bank, queries, options).say_doubts()
        settings |= {"device": device, "progress": progress if dist.is_main() else None}
        found = knn(model.to(device), subnets, bank, queries, options, **settings)
        pixels, untrained = None, None
        if args.floors:
            shared = {name: settings[name] for name in ("device", "workers", "progress")}
            pixels = raw_pixel_floor(bank, queries, options, **shared)
            other = random_weights(recipe).to(device)
            untrained = knn(other, subnets, bank, queries, options, **settings)
        how = protocol(bank, queries, options, precision=settings["precision"])
        row = results.Evaluation.of(step, how, found, raw_pixels=pixels, random_weights=untrained)
        if dist.is_main():
            path = RunFolder.around(find_teacher(args.run, args.step)).knn
            results.append(path, row)
            print(f"{results.table(row)}\nadded to {path}")
    return 0


@contextmanager
def _all_ranks() -> Iterator[torch.device]:
    """The device of this rank, in a process group where a launcher started several."""
    gpu = torch.cuda.is_available()
    rendezvous.prepare_environment()
    rendezvous.check_port(os.environ)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    joins = int(os.environ["WORLD_SIZE"]) > 1 and not torch.distributed.is_initialized()
    if joins:
        torch.distributed.init_process_group("nccl" if gpu else "gloo")
    yield device
    if joins:
        torch.distributed.destroy_process_group()


def _overridden(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command's options in the place of its own."""
    names = ("queries", "bank", "query_images", "bank_images", "batch_size")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    data = {} if args.workers is None else {"workers": args.workers}
    recipe = dataclasses.replace(
        recipe,
        evaluation=dataclasses.replace(recipe.evaluation, **given),
        data=dataclasses.replace(recipe.data, **data),
    )
    for name, folder in (
        ("--queries", recipe.evaluation.queries),
        ("--bank", recipe.evaluation.bank or recipe.data.train),
    ):
        if not folder:
            raise UsageError(f"the run's recipe names no such images: give {name} SHARD_FOLDER")
    for name in names[2:]:
        if given.get(name, 1) < (name == "batch_size"):
            raise UsageError(f"--{name.replace('_', '-')} {given[name]} is too small")
    checks.check_kept(recipe)
    return recipe

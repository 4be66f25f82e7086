"""All that a classifier on features is measured on, as the options say."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from poa_ds.evaluate import classes, corruptions, measured, real
from poa_ds.evaluate.feature_cache import Cache, is_features
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.evaluate.measured import Measured
from poa_ds.evaluate.real import Real


def lists_of(cache: Cache, val: str, args: argparse.Namespace) -> Real | None:
    """What --real names. UserError: it does not go with the validation images."""
    if args.real is None:
        return None
    found = Real.read(args.real)
    there = is_features(val)
    found.check(FeatureSet.at(Path(val)).setting["rows"] if there else len(cache.images(val)), val)
    return found


def say_corruptions(cache: Cache, args: argparse.Namespace) -> None:
    """What --corruptions costs, before anything is computed."""
    reader = cache.reader
    crop = reader.recipe.evaluation.crop
    flops = sum(reader.model.flops(subnet, crop) for subnet in reader.subnets)
    corruptions.say_cost(args, lambda place: len(cache.images(place)), flops)


def measured_sets(
    train: str,
    learnt: Sequence[str],
    found: Mapping[str, FeatureSet],
    sizes: Sequence[str],
    lists: Real | None,
    args: argparse.Namespace,
) -> list[Measured]:
    """The validation images first, then --test's in their order, then what --real says.

    learnt: the classes of the images `train`. found: name -> features, val among them.
    """
    sets, count, drop = [], len(learnt), args.drop_unknown_classes
    numbers = {
        name: classes.matched(features.classes, features.place, learnt, train, drop=drop)
        for name, features in found.items()
    }
    for name, features in found.items():
        among = measured.answers(numbers[name], count, args) if name != "val" else None
        sets.append(measured.of_features(name, features, numbers[name], sizes, among))
    if lists and sizes:
        sets.append(real.of_features(lists, found["val"], numbers["val"], count, sizes))
    return sets

"""Checkpoints of one process without an engine: snapshots with tensors that the test knows."""

import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from poa_ds.checkpoint.saver import Saver
from poa_ds.checkpoint.state import KEYS, Snapshot
from poa_ds.methods.method import method
from poa_ds.recipe import load
from tests.evaluate.test_knn import tiny


def saver(root: Path, **changes: object) -> Saver:
    settings = {"keep_last": 2, "keep_every_steps": 0, "background": True}
    return Saver(root, **settings | changes)


def snapshot(at: int, *, elements: int = 1000, shapes: dict | None = None, **about) -> Snapshot:
    """One rank's whole part after `at` steps: random, or what `about` names of it."""
    shapes = shapes or {"backbone.a": [elements]}
    rng = np.random.default_rng(at)
    count = {name: math.prod(shape) for name, shape in shapes.items()}
    state = {"step": at, "samples_seen": 16 * at}
    told = {"state": state, "adam_steps": {}, "counters": {}, "ranks": 1, "stage": 0, "recipe": ""}
    return Snapshot(
        step=at,
        arrays={
            f"{name}|{key}": rng.standard_normal(n, np.float32)
            for key in KEYS
            for name, n in count.items()
        },
        pieces={name: (0, n) for name, n in count.items()},
        extra={"center": np.float32([1, 2, at])},
        about=told | {"shapes": shapes} | about,
    )


def save(root: Path, at: int, **about: object) -> Path:
    """A whole checkpoint of that step."""
    made = saver(root, keep_last=9)
    made.begin(snapshot(at, **about))
    made.finish()
    assert made.newest
    return made.newest


def of_recipe(root: Path, at: int, *overrides: str) -> tuple[Path, Snapshot]:
    """A checkpoint with the parameters of a real recipe."""
    recipe = tiny(*overrides)
    trained = method(recipe).networks().trained()
    shapes = {name: list(p.shape) for name, p in trained.items()}
    made, taken = saver(root, keep_last=9), snapshot(at, shapes=shapes)
    taken = snapshot(at, shapes=shapes, recipe=load.to_yaml(recipe))
    made.begin(taken)
    made.finish()
    assert made.newest
    return made.newest, taken


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with disk(tmp_path / "disk", "256k") as place:
        yield place


@contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of that size at a new folder; the test is skipped where none can be mounted."""
    place.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no `mount` to make a small disk with")
    if done.returncode:
        pytest.skip(f"a small disk needs root: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)

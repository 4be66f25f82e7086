"""The parts of `poa-ds bench gpu`, in their order: which programs run, full and as a smoke run."""

import importlib.util
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from poa_ds.bench.gpu import figures
from poa_ds.bench.gpu.calls import ROOT, Call, Part, Scene
from poa_ds.run import exit_status

CLI = "poa_ds.cli"
PHOTOGRAPHS = ("skimage", "sklearn")  # packages with the photographs of `poa-ds shard photos`
NAMES = ("machine", "train", "kernels", "table", "step", "heads", "loader", "cifar")
KERNEL_TESTS = ROOT / "tests" / "kernels"
# in the order of the gain that is expected of them; each a part of comparisons' names
OPERATORS = tuple("residual gelu prototype sinkhorn attention rotary linear colours".split())
VIT, PUBLISHED = "vit_l16_in1k", "three passes,plain"  # the latter: ways beside ours
PUBLISHED_CALL, COMPILED_CALL = f"{VIT} beside {PUBLISHED}", f"{VIT} beside compiled"
FIRST_SCALE = 24  # 2^24: too high for fp16 gradients of the first steps, soon low enough
STOP_AFTER = 2  # steps


def parts(scene: Scene) -> tuple[Part, ...]:
    """All of them. share: about the minutes that a part wants on an H100 (not measured)."""
    found = (
        Part("machine", "What is here", 1, (_machine(scene),)),
        Part("train", "Does it train", 5, tuple(_train(scene))),
        Part("kernels", "Tests of the kernels", 4, (_kernel_tests(scene),)),
        Part("table", "The kernel table", 9, tuple(_table(scene))),
        Part("step", "A training step", 8, tuple(_step(scene))),
        Part("heads", "Heads and losses", 1, (_heads(scene),)),
        Part("loader", "The loader", 2, (*_shards(scene), _loader(scene))),
        Part("cifar", "CIFAR-10", 8 if scene.cifar else 0, tuple(_cifar(scene))),
    )
    assert tuple(part.name for part in found) == NAMES
    return found


def _on_gpu(scene: Scene, what: str) -> str:
    return "" if scene.device == "cuda" else f"{what} needs a GPU"


def _machine(scene: Scene) -> Call:
    record = scene.record("machine")
    words = ("poa_ds.bench.gpu.machine", str(record))
    return Call("machine", words, partial(figures.read, record))


def _shards(scene: Scene) -> Iterator[Call]:
    """Of the photographs, or of drawn pictures where a package that has them is missing."""
    made, pictures = scene.shards / "val" / "dataset.json", scene.out / "pictures"
    if all(map(importlib.util.find_spec, PHOTOGRAPHS)):
        words = (CLI, "shard", "photos", "--out", str(scene.shards))
        yield Call("shards", words, fresh=scene.shards, unless=made)
        return
    words = ("poa_ds.bench.gpu.pictures", str(pictures))
    yield Call("pictures", words, fresh=pictures, unless=made)
    for split in ("train", "val"):
        out = scene.shards / split
        words = (CLI, "shard", "folder", "--root", str(pictures / split), "--out", str(out))
        yield Call(f"shards, {split}", words, fresh=out, unless=out / "dataset.json")


def _train(scene: Scene) -> Iterator[Call]:
    """The photos under each stage, one stopped and continued; fp16 from too high a scale."""
    yield from _shards(scene)
    for stage in (1, 2, 3):
        folder, name = scene.out / "runs" / f"zero{stage}", f"bf16, stage {stage}"
        changes = ("precision=bf16", *(["batch.slots=1"] if stage == 1 else []))  # sums in bf16
        words = _training(scene, folder, f"zero{stage}", *changes, stops=stage == 2)
        if stage != 2:
            yield Call(name, words, partial(figures.of_training, folder), fresh=folder)
            continue
        yield Call(
            f"{name}, stopped",
            words,
            partial(figures.of_stop, folder),
            expected=exit_status.STOPPED,
            stop=partial(figures.has_logged, folder, STOP_AFTER),
            fresh=folder,
        )
        yield Call(f"{name}, continued", words, partial(figures.of_continuing, folder))
    folder, settings = scene.out / "runs" / "fp16", scene.out / "fp16.json"
    scale = {"zero_optimization": {"stage": 2}, "fp16": {"initial_scale_power": FIRST_SCALE}}
    yield Call(
        "fp16, overflow",
        _training(scene, folder, str(settings), "precision=fp16", stops=True),
        partial(figures.of_overflow, folder),
        fresh=folder,
        files={settings: json.dumps(scale)},
        impossible=_on_gpu(scene, "fp16"),
    )


def _training(
    scene: Scene, folder: Path, deepspeed: str, *changes: str, stops: bool
) -> tuple[str, ...]:
    """stops: long enough to be stopped in the middle, or for a loss scale to come down."""
    steps = 50 if not scene.smoke else 12 if stops else 2
    size = ("batch.images_per_slot=4", "schedule.warmup_epochs=0.5") if scene.smoke else ()
    return (
        *("poa_ds.train", "--config", "photos", "--deepspeed_config", deepspeed, *changes),
        *("tracking=none", "log_every=1", "schedule.epochs=2", f"schedule.steps_per_epoch={steps}"),
        *("evaluation.every_epochs=2", "evaluation.at_start=false", "checkpoint.every_epochs=1"),
        *("evaluation.sizes=[small,large]", f"data.train={scene.shards / 'train'}"),
        *(f"evaluation.queries={scene.shards / 'val'}", f"output_dir={folder}", *size),
    )


def _kernel_tests(scene: Scene) -> Call:
    chosen = KERNEL_TESTS / "test_gelu.py" if scene.smoke else KERNEL_TESTS
    words = ("pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", str(chosen))
    # compilation takes most of the time, of one core per process
    workers = () if scene.smoke else ("-n", "8")
    absent = "" if KERNEL_TESTS.is_dir() else "the tests are in the repository alone"
    return Call("tests", (*words, *workers), impossible=absent)


def _table(scene: Scene) -> Iterator[Call]:
    """Every operator twice, then the table of what agrees."""
    folder = scene.record("kernels").parent / "kernels"
    operators = ("gelu",) if scene.smoke else OPERATORS
    # in the interpreter only where no kernel can run: it is slow, and not every numpy suits it
    quick = ("--smoke",) if scene.device == "cpu" else ("--no-tests",)
    for name in operators:
        for turn in (1, 2):
            record = folder / f"{name}.{turn}.json"
            words = ("poa_kernels.bench", *quick, "--only", name, "--json", str(record))
            if scene.device == "cuda":
                words += ("--write-table", "--table", str(record.with_suffix(".table.json")))
            yield Call(f"{name}, {turn}", words, partial(figures.of_kernels, record))
    table = scene.out / "table.json"
    decisions = table.with_suffix(".decisions.json")
    yield Call(
        "table",
        ("poa_ds.bench.gpu.table", str(folder), str(table), str(scene.outcomes_file("kernels"))),
        partial(figures.read, decisions),
        collects=True,
        impossible=_on_gpu(scene, "a table of what is faster"),
    )


def _step(scene: Scene) -> Iterator[Call]:
    """Ours beside the other ways; a way that fails leaves the figures of the others."""
    triton = _on_gpu(scene, "every kernel at once")
    if scene.smoke:
        tiny = ("--steps", "2", "--warmup", "1", "batch.slots=1", "batch.images_per_slot=2")
        yield _beside(scene, "photos", "three passes,compiled", "--profile", *tiny)
        yield _beside(scene, "photos", "triton", *tiny, impossible=triton)
        yield _beside(scene, "photos_swin", "three passes", *tiny)
        yield _beside(scene, "photos_resnet", "three passes", *tiny)
        return
    few = ("--steps", "10", "--warmup", "3", "--profile", "batch.slots=1")
    yield _beside(scene, VIT, PUBLISHED, *few)
    yield _beside(scene, VIT, "compiled", *few)
    yield _beside(scene, VIT, "triton", *few, impossible=triton)
    for recipe in ("swin_b_in1k", "resnet152x2_in1k"):
        yield _beside(scene, recipe, "three passes", *few)


def step_record(scene: Scene, recipe: str, others: str) -> Path:
    """The record of `poa-ds bench step`."""
    return scene.record(f"step.{recipe}.{others.replace(' ', '_').replace(',', '_')}")


def _beside(scene: Scene, recipe: str, others: str, *words: str, impossible: str = "") -> Call:
    record = step_record(scene, recipe, others)
    command = (CLI, "bench", "step", "--config", recipe, "--against", others)
    return Call(
        f"{recipe} beside {others}",
        (*command, "--json", str(record), *words),
        partial(figures.of_step, record),
        impossible=impossible,
    )


def _heads(scene: Scene) -> Call:
    record = scene.record("heads")
    recipe = ("photos", "precision=fp32") if scene.smoke else (VIT, "--repeat", "5")
    words = (CLI, "bench", "heads", "--json", str(record), "--config", *recipe)
    return Call("heads", words, partial(figures.of_heads, record))


def _loader(scene: Scene) -> Call:
    record = scene.record("loader")
    size = ("--images", "16", "--workers", "1") if scene.smoke else ("--workers", "1,4,8")
    words = (CLI, "bench", "data", "--config", "photos", f"data.train={scene.shards / 'train'}")
    return Call(
        "loader", (*words, "--json", str(record), *size), partial(figures.of_loader, record)
    )


def _cifar(scene: Scene) -> Iterator[Call]:
    """A training for the time that is left, with its k-NN curve."""
    absent = "" if scene.cifar else "it needs --cifar DIR, the folder with its archive"
    shards, folder = scene.out / "cifar", scene.out / "runs" / "cifar"
    words = (CLI, "shard", "cifar10", "--source", str(scene.cifar), "--out", str(shards))
    made = shards / "val" / "dataset.json"
    yield Call("shards", words, fresh=shards, unless=made, impossible=absent)
    # one large slot: a step of such a small network has as many launches as one of few images
    size = ("precision=bf16", "batch.images_per_slot=512", "schedule.epochs=20")
    epochs, every = 2, 10  # of each beginning; between evaluations
    if scene.smoke:  # a CPU takes long for bf16
        size = ("precision=fp32", "batch.images_per_slot=2", "schedule.epochs=2", "log_every=1")
        size += ("schedule.steps_per_epoch=2", "evaluation.bank_images=50", "evaluation.k=[20]")
        size += ("evaluation.query_images=20", "evaluation.at_start=false", "data.workers=1")
        epochs = every = 1
    begins = ("warmup_epochs", "ibot_start_epoch", "teacher_temperature_epochs")
    words = (
        *("poa_ds.train", "--config", "cifar10", "--deepspeed_config", "zero2", "tracking=none"),
        *("batch.slots=1", *(f"schedule.{begin}={epochs}" for begin in begins)),
        *(f"evaluation.every_epochs={every}", "evaluation.sizes=[small,large]"),
        *(f"data.train={shards / 'train'}", f"evaluation.queries={shards / 'val'}"),
        *(f"output_dir={folder}", *size),
    )
    curve = partial(figures.of_curve, folder)
    yield Call("training", words, curve, goes_on=True, impossible=absent)

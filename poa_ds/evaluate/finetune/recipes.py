"""How sizes are fine-tuned: POA's table, and the recipe of a training that it makes of a run's.

Other sizes take the row of the named size whose number of parameters is nearest, as a ratio; no
number between two rows is made up.
"""

from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

from poa_ds.model import shape as shapes
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import (
    Augmentation,
    Batch,
    Checkpoint,
    Crops,
    Data,
    Distill,
    Evaluation,
    Finetune,
    Masks,
    Objective,
    Optimizer,
    Recipe,
    Schedule,
    Slimmable,
)
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import plain


@dataclass(frozen=True)
class Settings:
    """The numbers of one fine-tuning. batch: of a step; lr: at its peak, whatever the batch is.

    ema: momentum of the averaged weights. Defaults: what POA has in all rows.
    """

    batch: int
    epochs: float
    lr: float
    layer_decay: float
    drop_path: float
    warmup: float = 0.1  # share of the epochs
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    ema: float = 0.7
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    policy: str = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25


@dataclass(frozen=True)
class Row:
    """A named size of a shipped recipe, and how it is fine-tuned."""

    recipe: str
    size: str
    title: str
    settings: Settings

    def parameters(self) -> int:
        recipe = load.recipe(Path(self.recipe))
        return derived.shape(recipe).parameters(derived.space(recipe).parse(self.size))


VIT, SWIN, RESNET = "vit_l16_in1k", "swin_b_in1k", "resnet152x2_in1k"
# name of a backbone -> its rows, from POA's code for fine-tuning on ImageNet
TABLE = {
    "vit": (
        Row(VIT, "small", "ViT-S", Settings(2048, 200, 0.002, 0.55, 0.1)),
        Row(VIT, "base", "ViT-B", Settings(2048, 100, 0.0007, 0.4, 0.2)),
        Row(VIT, "large", "ViT-L", Settings(2048, 50, 0.0018, 0.6, 0.2)),
    ),
    "swin": (
        Row(SWIN, "tiny", "Swin-T", Settings(1024, 200, 0.0014, 0.6, 0.1)),
        Row(SWIN, "small", "Swin-S", Settings(1024, 100, 0.001, 0.4, 0.2)),
        Row(SWIN, "base", "Swin-B", Settings(512, 50, 0.0007, 0.55, 0.2)),
    ),
    "resnet": (
        Row(RESNET, "R50", "ResNet-50", Settings(1024, 100, 0.0014, 0.6, 0.0)),
        Row(RESNET, "R101", "ResNet-101", Settings(1024, 100, 0.001, 0.4, 0.0)),
        Row(RESNET, "R152", "ResNet-152", Settings(512, 100, 0.0007, 0.45, 0.0)),
    ),
}
# set -> epochs, (rate for 512 images, layer decay) of ViT-S and of ViT-B, from POA's code for
# transfer; a step has 768 images there
TRANSFER = {
    "cifar10": (1000, (8e-6, 0.9), (7.5e-6, 0.9)),
    "cifar100": (1000, (9e-6, 0.85), (7.5e-6, 0.8)),
    "inat18": (360, (4e-4, 0.8), (2e-4, 0.75)),
    "inat19": (360, (7e-5, 0.85), (4e-5, 0.75)),
    "flowers": (1000, (6e-4, 0.6), (5e-4, 0.7)),
    "cars": (1000, (4e-4, 0.8), (3e-4, 0.7)),
}
# of few labels of ImageNet, from the paper's code: an almost constant rate, 5e-6 for 512 images
FEW_LABELS = {
    "vit": (
        Row(
            VIT,
            "small",
            "ViT-S, few labels",
            Settings(1024, 1000, 1e-5, 1.0, 0.1, warmup=5 / 1000, min_lr=1e-5, ema=0.99996),
        ),
    )
}
IMAGENET, FEW = "imagenet", "few"
RECIPES = (IMAGENET, FEW, *TRANSFER)
PUBLISHED_COSINE = 200  # epochs over which the published code lays every cosine


def rows_of(name: str, images: str = IMAGENET) -> tuple[Row, ...]:
    """The rows for a backbone of that name on these images; () where nothing is published."""
    if images == IMAGENET:
        return TABLE.get(name, ())
    if images == FEW:
        return FEW_LABELS.get(name, ())
    epochs, *of_sizes = TRANSFER[images]
    return tuple(
        replace(
            row,
            title=f"{row.title} on {images}",
            settings=Settings(
                batch=768,
                epochs=epochs,
                lr=lr * 768 / 512,
                layer_decay=layer_decay,
                drop_path=row.settings.drop_path,
                warmup=5 / epochs,
                min_lr=1e-5,
                erase=0.1,
            ),
        )
        for row, (lr, layer_decay) in zip(TABLE.get(name, ()), of_sizes, strict=False)
        if row.recipe == VIT
    )


def nearest(recipe: Recipe, subnet: Subnet, images: str = IMAGENET) -> Row:
    """The row for a size of a run. UsageError: there is none for its backbone."""
    name = shapes.one_size(recipe.backbone, subnet).name
    rows = rows_of(name, images)
    if not rows:
        raise UsageError(f"backbone.name {name}: nothing is published of how to fine-tune it")
    own = derived.shape(recipe).parameters(subnet)
    return min(rows, key=lambda row: abs(log(row.parameters() / own)))


@dataclass(frozen=True)
class Job:
    """What is fine-tuned, on what, and where its folder is. start: empty for random weights."""

    run: Recipe
    subnet: Subnet
    start: str
    settings: Settings
    train: str
    val: str
    classes: int
    subset: float | Path = 1.0  # a share of each class, or a file that names images
    slots: int = 0  # of a step; 0: 8, or fewer where that does not divide the batch
    cosine: float = 0.0  # epochs over which the cosine is laid; 0: all
    seed: int = 0
    precision: str = "fp32"
    workers: int = 0
    drop_unknown_classes: bool = False  # of val
    projected: int = 0  # channels of the head's first layer, which stays; 0: it does not

    def recipe(self, output_dir: str) -> Recipe:
        """The checked recipe of the training. UsageError: its numbers contradict each other."""
        run, found = self.run, self.settings
        options = replace(
            shapes.taken_out(run.backbone, self.subnet), names={}, drop_path=found.drop_path
        )
        name = run.mlflow.run_name or Path(run.output_dir).name or "run"
        tree = Recipe(
            output_dir=output_dir,
            start=self.start,
            seed=self.seed,
            precision=self.precision,
            log_every=run.log_every,
            step_timeout_seconds=run.step_timeout_seconds,
            tracking=run.tracking,
            report=False,
            kernels=run.kernels,
            mlflow=replace(
                run.mlflow,
                experiment=f"{run.mlflow.experiment or 'poa'}-finetune",
                run_name=f"{name}_{self.subnet}",
            ),
            backbone=options,
            objective=Objective(method="finetune", ibot=0.0, koleo=0.0),
            slimmable=Slimmable(),
            distill=Distill(),
            finetune=self._finetune(),
            crops=Crops(run.crops.global_size, (0.08, 1.0), local_count=0),
            augmentation=Augmentation(mean=run.augmentation.mean, std=run.augmentation.std),
            masks=Masks(probability=0.0),
            batch=self._batch(),
            schedule=self._schedule(),
            optimizer=Optimizer(
                layer_decay=found.layer_decay,
                patch_embed_factor=1.0,
                clip_backbone=0.0,
                clip_heads=0.0,
                decayed="matrices",
            ),
            data=self._data(),
            evaluation=Evaluation(
                queries=self.val,
                every_epochs=1.0,
                at_start=False,
                drop_unknown_classes=self.drop_unknown_classes,
                resize=run.evaluation.resize,
                crop=run.evaluation.crop,
                batch_size=run.evaluation.batch_size,
            ),
            checkpoint=Checkpoint(keep_last=1),
        )
        return load.from_dict(plain(tree))

    def _finetune(self) -> Finetune:
        found = self.settings
        return Finetune(
            classes=self.classes,
            projected=self.projected,
            share=1.0 if isinstance(self.subset, Path) else self.subset,
            subset=str(self.subset.absolute()) if isinstance(self.subset, Path) else "",
            policy=found.policy,
            erase=found.erase,
            mixup=found.mixup,
            cutmix=found.cutmix,
            smoothing=found.smoothing,
        )

    def _batch(self) -> Batch:
        images = self.settings.batch
        slots = self.slots or next(n for n in (8, 4, 2, 1) if images % n == 0)
        if images % slots:
            raise UsageError(f"--slots {slots} do not divide the {images} images of a step")
        return Batch(slots, images // slots)

    def _schedule(self) -> Schedule:
        found = self.settings
        return Schedule(
            epochs=found.epochs,
            warmup_epochs=found.warmup * found.epochs,
            ibot_start_epoch=0.0,
            freeze_last_layer_epochs=0.0,
            stretch=min(1.0, found.epochs / self.cosine) if self.cosine else 1.0,
            base_lr=found.lr,
            lr_scaling="none",
            min_lr=found.min_lr,
            weight_decay=found.weight_decay,
            weight_decay_end=found.weight_decay,
            momentum=found.ema,
            momentum_end=found.ema,
            teacher_temperature_epochs=0.0,
        )

    def _data(self) -> Data:
        own = self.run.data
        return Data(
            train=self.train,
            cache=own.cache,
            cache_gb=own.cache_gb,
            workers=self.workers,
            decoder=own.decoder,
            on_error=own.on_error,
            max_bad_fraction=own.max_bad_fraction,
        )


def numbers(recipe: Recipe) -> dict[str, Any]:
    """What a table shows of a fine-tuning, and another one may have otherwise."""
    schedule, batch = recipe.schedule, recipe.batch
    return {
        "epochs": schedule.epochs,
        "batch": batch.slots * batch.images_per_slot,
        "mixed within": batch.images_per_slot,
        "lr": schedule.base_lr,
        "layer decay": recipe.optimizer.layer_decay,
        "drop path": recipe.backbone.drop_path,
    }


def amount(recipe: Recipe) -> str:
    """Behind the name of a metric: of how many labels, empty for all."""
    share, file = recipe.finetune.share, recipe.finetune.subset
    return f"_of_{Path(file).stem}" if file else f"_of_{100 * share:g}%" if share < 1 else ""


def protocol(recipe: Recipe) -> dict[str, Any]:
    """The numbers of a fine-tuning that all rows of a table share, and those given by hand."""
    from poa_ds.evaluate.split import Listed

    schedule, options, optimizer = recipe.schedule, recipe.finetune, recipe.optimizer
    return {
        "crops": {"scale": [*recipe.crops.global_scale], "flip": recipe.augmentation.flip},
        "policy": options.policy,
        "erase": options.erase,
        "mixup": options.mixup,
        "cutmix": options.cutmix,
        "switch": options.switch,
        "smoothing": options.smoothing,
        "adamw": [optimizer.beta1, optimizer.beta2, optimizer.eps],
        "weight_decay": schedule.weight_decay,
        "min_lr": schedule.min_lr,
        "warmup_share": round(schedule.warmup_epochs / schedule.epochs, 6),
        "cosine_stretch": schedule.stretch,
        "ema": schedule.momentum,
        "resize": recipe.evaluation.resize,
        "crop": recipe.evaluation.crop,
        "precision": recipe.precision,
        "seed": recipe.seed,
        **({"head_layer": 1, "projected": options.projected} if options.projected else {}),
        "subset": Listed.read(Path(options.subset)).record() if options.subset else options.share,
        "start": "run" if recipe.start else "random",
        "published": False,  # drop path is applied, and pixels are resized by bicubic kernels
    }

"""What becomes of a run that continues with another recipe: for every key, and said at its start.

RULES is the one owner: the messages and the table in docs/checkpoints.md are made from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe
from poa_ds.system.addresses import without_passwords
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import build, flat, parse, plain


@dataclass(frozen=True)
class Rule:
    """How a change of some keys is taken; counted: what it changes the meaning of."""

    kind: Literal["may", "must not"]
    note: str
    keys: str
    counted: str = ""

    def __str__(self) -> str:
        return f"changes the meaning of {self.counted}: {self.note}" if self.counted else self.note


RULES = (
    Rule(
        "must not",
        "the parameters, or what they stand for, would be others",
        "backbone.name backbone.stages backbone.patch_size backbone.head_dim backbone.mlp_ratio"
        " backbone.window backbone.projected backbone.shifted backbone.norm_groups"
        " backbone.outer backbone.input_scale"
        " backbone.width.max backbone.registers backbone.norm_eps backbone.swiglu"
        " backbone.norms"
        " backbone.positions backbone.qkv_bias"
        " backbone.template.ranks"
        " backbone.widths backbone.depth.max"
        " heads.prototypes heads.hidden heads.bottleneck heads.layers heads.separate_ibot"
        " heads.elastic"
        " distill.hidden crops.global_size data.channels data.range data.percentiles"
        " data.pages finetune.classes finetune.projected",
    ),
    Rule(
        "must not",
        "a checkpoint holds the whole queue",
        "distill.queue distill.local distill.embedding",
    ),
    Rule(
        "must not", "what is trained, and how, would be another", "objective.method objective.loss"
    ),
    Rule(
        "must not",
        "the images would come in another order, some of them twice and some not at all",
        "data.mode data.block_shards finetune.share finetune.subset",
    ),
    Rule(
        "may",
        "the step stands, but it is another part of the run: every later step is that of a run"
        " which had these batches from the start",
        "batch.slots batch.images_per_slot",
        counted="steps, epochs, positions in the data and schedules",
    ),
    Rule(
        "may",
        "they are laid out anew over all steps, and go on from this step of the new curves",
        "schedule.epochs schedule.steps_per_epoch data.images",
        counted="epochs and schedules",
    ),
    Rule(
        "may",
        "they go on from this step of the new curves",
        "schedule.warmup_epochs schedule.ibot_start_epoch schedule.freeze_last_layer_epochs"
        " schedule.stretch schedule.base_lr schedule.lr_scaling schedule.min_lr"
        " schedule.weight_decay schedule.weight_decay_end schedule.momentum schedule.momentum_end"
        " schedule.teacher_temperature_start schedule.teacher_temperature"
        " schedule.teacher_temperature_epochs",
        counted="schedules",
    ),
    Rule(
        "may",
        "images, crops and sizes are drawn anew: of this epoch some images come twice and some"
        " not at all",
        "seed",
        counted="positions in the data",
    ),
    Rule(
        "may",
        "earlier and later ones cannot be compared",
        "objective.intact_weight objective.slow_start objective.imitation objective.dino"
        " objective.ibot objective.koleo objective.koleo_students"
        " objective.student_temperature objective.sinkhorn_iterations"
        " slimmable.weights slimmable.imitation"
        " distill.teacher_temperature distill.student_temperature distill.imitation distill.patches"
        " crops.global_scale"
        " crops.local_count crops.local_size crops.local_scale augmentation.flip"
        " augmentation.jitter augmentation.brightness augmentation.contrast"
        " augmentation.saturation augmentation.hue augmentation.gray augmentation.blur"
        " augmentation.blur_probability augmentation.blur_kernel augmentation.blur_sigma"
        " augmentation.solarize augmentation.mean augmentation.std masks.probability masks.ratio"
        " backbone.drop_path backbone.template.noise"
        " finetune.policy finetune.erase finetune.mixup finetune.cutmix finetune.switch"
        " finetune.smoothing",
        counted="losses",
    ),
    Rule(
        "may",
        "earlier and later ones cannot be compared; centres begin at zero, or are given up",
        "objective.centering",
        counted="losses",
    ),
    Rule(
        "may",
        "earlier and later ones cannot be compared",
        "evaluation.queries evaluation.bank evaluation.bank_images evaluation.query_images"
        " evaluation.drop_unknown_classes evaluation.k evaluation.report_k evaluation.temperature"
        " evaluation.resize evaluation.crop",
        counted="k-NN accuracies",
    ),
    Rule(
        "may",
        "the classifier goes on with what it has learnt, or begins anew where there is none",
        "evaluation.online.labels evaluation.online.every_steps evaluation.online.lr",
        counted="online/top1",
    ),
    Rule(
        "may",
        "sizes that come to it have been trained less than others",
        "backbone.width.min backbone.width.step backbone.depth.min backbone.depth.step",
        counted="the sizes",
    ),
    Rule("may", "sizes are drawn by another rule from here on", "draws backbone.small_bias"),
    Rule(
        "may",
        "without effect: it was used at the first step",
        "start backbone.layer_scale backbone.init heads.init",
    ),
    Rule(
        "may",
        "another place of the same images; others are refused by their index",
        "data.train data.mix",
    ),
    Rule(
        "may",
        "another place of the same file; another teacher is refused by its sha256",
        "distill.teacher",
    ),
    Rule(
        "may",
        "holds from here on; the moments stay",
        "optimizer.beta1 optimizer.beta2 optimizer.eps optimizer.layer_decay"
        " optimizer.patch_embed_factor optimizer.clip_backbone optimizer.clip_heads"
        " optimizer.decayed",
    ),
    Rule(
        "may",
        "masters, moments and teacher are float32 in every checkpoint",
        "precision backbone.residual",
    ),
    Rule("may", "simplejpeg_scaled makes other pixels than the other two", "data.decoder"),
    Rule(
        "may",
        "a store that does not know the run gets a new one, with all points; a run that is there"
        " keeps its experiment and its name",
        "tracking mlflow.uri mlflow.experiment mlflow.run_name",
    ),
    Rule("may", "this folder goes by another name", "output_dir"),
    Rule(
        "may",
        "holds from here on",
        "max_bad_steps log_every step_timeout_seconds report kernels compile backbone.names"
        " backbone.activation_checkpointing data.cache data.cache_gb data.workers data.on_error"
        " data.max_bad_fraction evaluation.every_epochs evaluation.at_start evaluation.sizes"
        " evaluation.batch_size checkpoint.every_epochs checkpoint.keep_last"
        " checkpoint.keep_every_epochs checkpoint.background",
    ),
)
_RULE_OF = {key: rule for rule in RULES for key in rule.keys.split()}
GONE = Rule("may", "this version has no such key", "")


@dataclass(frozen=True)
class Change:
    """A key with its values before and now."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = (value if value != "" else "(empty)" for value in (self.old, self.new))
        return without_passwords(f"{self.key}: {old} -> {new}")

    @property
    def rule(self) -> Rule:
        """A mapping's own keys have the rule of the mapping."""
        parts = self.key.split(".")
        keys = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((_RULE_OF[key] for key in keys if key in _RULE_OF), GONE)


def changes(before: str, recipe: Recipe) -> list[Change]:
    """What differs from an earlier recipe (its YAML text); it had the defaults of later keys."""
    tree = parse(before, source="the earlier recipe") or {}
    if not isinstance(tree, Mapping):
        raise UsageError(f"the earlier recipe is a {type(tree).__name__}, not `key: value` lines")
    old = flat(plain(Recipe())) | flat(tree)
    new = flat(plain(recipe))
    return [
        Change(key, old.get(key, "absent"), new.get(key, "absent"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def refuse(found: list[Change], place: object) -> None:
    """UsageError with every change that the checkpoint at `place` does not allow."""
    wrong = [change for change in found if change.rule.kind == "must not"]
    if wrong:
        lines = "\n".join(f"  {change} ({change.rule})" for change in wrong)
        raise UsageError(
            f"{place} is of a run whose recipe cannot become this one:\n{lines}\n"
            "Give the old values to continue it, or another output_dir for a new run"
        )


def lines(found: list[Change], recipe: Recipe, *, step: int, images: int) -> list[str]:
    """What is said of the changes when the run continues at `step`, on so many images."""
    said = [f"the recipe has changed: {change} ({change.rule})" for change in found]
    if any("schedules" in change.rule.counted for change in found):
        was, now = (_place(r, step, images) for r in (_earlier(recipe, found), recipe))
        said.append(f"step {step:,} was {was}; it is {now}")
    return said


def _earlier(recipe: Recipe, found: list[Change]) -> Recipe:
    """The recipe before the changes that its schedules feel."""
    tree = plain(recipe)
    for change in found:
        if "schedules" in change.rule.counted:
            *sections, last = change.key.split(".")
            place = tree
            for section in sections:
                place = place[section]
            place[last] = change.old
    return build(Recipe(), tree)


def _place(recipe: Recipe, step: int, images: int) -> str:
    numbers = derived.of(recipe, images)
    values = derived.schedules(recipe, images).at(step)
    return (
        f"epoch {step / numbers.steps_per_epoch:.4g} of {recipe.schedule.epochs:g} (step"
        f" {numbers.steps:,} is the last), learning rate {values.lr:.3g}, weight decay"
        f" {values.weight_decay:.3g}, momentum {values.momentum:.6g}"
    )

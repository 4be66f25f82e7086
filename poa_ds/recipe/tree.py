"""A recipe as a typed tree: every key of the YAML files, with its default and its range.

The defaults are the published ViT-L/16 recipe (POA, ECCV 2024; its code where the paper differs),
except where the published code is known to be wrong; a recipe says what differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from poa_ds.model.options import COLOURS, Backbone
from poa_ds.model.space import Policy
from poa_ds.recipe.methods import METHODS
from poa_ds.system.addresses import Address
from poa_ds.system.typed_yaml import (
    Bounds,
    Count,
    CountOrNone,
    NamesOf,
    NotNegative,
    OneOf,
    Positive,
    Share,
)

Pair = tuple[Positive, Positive]


@dataclass(frozen=True)
class Mlflow:
    """Where metrics go beside metrics.jsonl."""

    # empty: MLFLOW_TRACKING_URI, else a sqlite store in output_dir
    uri: Address = field(default_factory=Address)
    experiment: str = ""  # empty: MLFLOW_EXPERIMENT_NAME or _ID, else `poa`
    run_name: str = ""  # empty: the name of output_dir


@dataclass(frozen=True)
class Heads:
    """Of student and teacher alike; only the first layer is elastic (docs/method.md 4)."""

    prototypes: tuple[Count, ...] = (8192, 16384, 32768, 65536)  # one head for each
    hidden: Count = 2048  # channels between the layers
    bottleneck: Count = 256  # channels of the rows that prototypes score
    layers: Annotated[int, Bounds(1, 3)] = 3  # linear ones, before the prototypes
    separate_ibot: bool = False  # patches get heads of their own
    # of the smaller student, for poa and sweet: those of the intact one, or its own, which begin
    # as a copy, have no average and are not deployed
    elastic: Literal["shared", "own"] = "shared"
    init: Literal["published", "xavier"] = "published"


@dataclass(frozen=True)
class Objective:
    """What is optimised (docs/method.md 5)."""

    method: Annotated[str, OneOf(METHODS)] = "poa"  # a name of methods.py
    intact_weight: Share = 0.8  # the paper's lambda; elastic students weigh 1 - lambda
    # how students and teacher are compared. prototypes: DINO, iBOT and KoLeo, by the weights below;
    # byol: a student predicts the teacher's projection of another view (docs/methods/dspnet.md)
    loss: Literal["prototypes", "byol"] = "prototypes"
    # share of the run, from its start, in which the intact student learns alone
    slow_start: Annotated[float, Bounds(0, 1, open_high=True)] = 0.0
    # of the smaller student towards the intact one, beside its terms towards the teacher, for poa
    # and sweet; 0: it is not computed
    imitation: NotNegative = 1.0
    dino: NotNegative = 1.0  # weight, as are the two below
    ibot: NotNegative = 1.0
    koleo: NotNegative = 0.1
    koleo_students: Literal["all", "intact"] = "all"  # whose features it spreads
    student_temperature: Positive = 0.1
    centering: Literal["sinkhorn", "softmax"] = "sinkhorn"  # how the teacher's targets are balanced
    sinkhorn_iterations: Count = 3


@dataclass(frozen=True)
class Slimmable:
    """Of objective.method dspnet."""

    # of its n students. equal: 1 / n each; poa: intact_weight for the intact one, the rest shared;
    # slimclr: 1 each, and for the intact one as much more as the others' widths are shares of its
    # own, over their sum
    weights: Literal["equal", "poa", "slimclr"] = "equal"
    # of the others towards the intact one, beside the terms towards the teacher
    imitation: NotNegative = 0.0


@dataclass(frozen=True)
class Distill:
    """Of objective.method seed."""

    # a run (RUN or RUN:SIZE), a folder that `poa-ds extract` wrote, or timm:NAME=FILE with the
    # weights of a timm model as safetensors; it is not trained
    teacher: str = ""
    # of the teacher: its class feature; or, of a run, what prototype head 0 makes of it
    embedding: Literal["class", "head0"] = "class"
    teacher_temperature: Positive = 0.01
    student_temperature: Positive = 0.2
    queue: Count = 65536  # embeddings of the teacher that a view is compared with
    # of the student's head; 0: one linear layer alone that begins as the identity, for a student
    # that begins as its teacher
    hidden: CountOrNone = 2048
    imitation: NotNegative = 0.0  # of the smaller student towards the intact one
    # local crops too, beside the teacher's embedding of the same crop, with a queue of their own
    local: bool = False
    # weight of how the patches of a global crop are similar to each other, as the teacher finds it
    patches: NotNegative = 0.0


@dataclass(frozen=True)
class Finetune:
    """Of objective.method finetune: a classifier on one size, all of which learns from labels.

    Crops follow crops.global_size and global_scale, and augmentation.flip, mean and std.
    """

    classes: CountOrNone = 0  # of the labels; 0: the run learns without labels
    # channels of the first layer of the projection head, where it stays between network and
    # classifier; 0: it does not
    projected: CountOrNone = 0
    share: Annotated[float, Bounds(0, 1, open_low=True)] = 1.0  # of each class's images
    subset: str = ""  # a file that names the images, one a line, in the place of a share
    policy: str = "rand-m9-mstd0.5-inc1"  # of changes to a crop, in timm's words; empty: none
    erase: Share = 0.25  # probability that a box of a crop becomes noise
    mixup: NotNegative = 0.8  # alpha of its Beta; 0: none, as for cutmix
    cutmix: NotNegative = 1.0
    switch: Share = 0.5  # probability of cutmix where there are both
    smoothing: Annotated[float, Bounds(0, 1, open_high=True)] = 0.1  # of labels


@dataclass(frozen=True)
class Crops:
    """Sizes in pixels, scales as shares of the image's area."""

    global_size: Count = 224
    global_scale: Pair = (0.32, 1.0)
    local_count: CountOrNone = 8
    local_size: Count = 96
    local_scale: Pair = (0.05, 0.32)


@dataclass(frozen=True)
class Augmentation:
    """Probabilities and strengths."""

    flip: Share = 0.5
    jitter: Share = 0.8
    brightness: NotNegative = 0.4
    contrast: NotNegative = 0.4
    saturation: NotNegative = 0.2
    hue: Annotated[float, Bounds(0, 0.5)] = 0.1
    gray: Share = 0.2
    # published: 1 - blur_probability, as the published code does by mistake
    blur: Literal["paper", "published"] = "paper"
    # of global crop 1, global crop 2, local crops
    blur_probability: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    blur_kernel: Count = 9  # pixels
    blur_sigma: Pair = (0.1, 2.0)  # pixels, from and to
    solarize: Share = 0.2  # of the second global crop only
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # of each channel, as is std
    std: tuple[Positive, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Masks:
    """Of the patches that iBOT hides."""

    probability: Share = 0.5  # share of the global crops that are masked
    ratio: tuple[Share, Share] = (0.1, 0.5)  # share of their patches


@dataclass(frozen=True)
class Batch:
    """A step has slots x images_per_slot images, on any number of ranks that divides `slots`."""

    slots: Count = 32
    images_per_slot: Count = 50


@dataclass(frozen=True)
class Schedule:
    """Lengths in epochs, fractions allowed (docs/method.md 6)."""

    epochs: Positive = 346.0
    steps_per_epoch: CountOrNone = 0  # 0: images // images of a step
    warmup_epochs: NotNegative = 10.0
    ibot_start_epoch: NotNegative = 30.0
    freeze_last_layer_epochs: NotNegative = 1.0
    # the cosines are laid out over 1 / stretch of the run and cut at its end
    stretch: Annotated[float, Bounds(0, 1, open_low=True)] = 0.78
    base_lr: Positive = 0.004  # before lr_scaling
    # how base_lr grows with images per step / 1024
    lr_scaling: Literal["sqrt", "linear", "none"] = "sqrt"
    min_lr: NotNegative = 2e-5
    weight_decay: NotNegative = 0.04
    weight_decay_end: NotNegative = 0.4
    momentum: Share = 0.992  # of the moving average, as is momentum_end
    momentum_end: Share = 0.9999
    teacher_temperature_start: Positive = 0.04
    teacher_temperature: Positive = 0.07
    teacher_temperature_epochs: NotNegative = 30.0


@dataclass(frozen=True)
class Optimizer:
    """AdamW; learning rate and weight decay are schedules."""

    beta1: Annotated[float, Bounds(0, 1, open_high=True)] = 0.9
    beta2: Annotated[float, Bounds(0, 1, open_high=True)] = 0.999
    eps: Positive = 1e-8
    # factor on the rate from one block to the one before
    layer_decay: Annotated[float, Bounds(0, 1, open_low=True)] = 0.9
    patch_embed_factor: NotNegative = 0.2  # in addition, on the patch projection
    clip_backbone: NotNegative = 1.5  # largest gradient norm, 0: any; likewise clip_heads
    clip_heads: NotNegative = 1.5
    # what weight decay applies to. published: all but biases, norms and LayerScale; matrices:
    # nor to tokens, positions and any other vector
    decayed: Literal["published", "matrices"] = "published"


@dataclass(frozen=True)
class Data:
    """Where images come from, and who reads them."""

    # a folder of images (sub-folders are the labels), a list of them (PATH or PATH<tab>CLASS a
    # line), a shard folder, or the address of one (http://, s3://, ...)
    train: str = ""
    # stream: train names tars that are only read from front to back (pipe:..., {000..099});
    # such a run does not continue with the same images
    mode: Literal["index", "stream"] = "index"
    images: CountOrNone = 0  # of an epoch in mode stream
    channels: Count = COLOURS  # of each image
    # [LOW, HIGH]: the numbers that become 0 and 1, of images of 16 bits or floating point
    range: tuple[float, ...] = ()
    # [LOW, HIGH], such as [1, 99]: those of each channel of each image, in the place of a range
    percentiles: tuple[float, ...] = ()
    # of a file (TIFF) with several pages: the first is the image, or each is one of its channels
    pages: Literal["first", "channels"] = "first"
    # several folders in the place of train, with weights
    mix: Mapping[str, Positive] = field(default_factory=dict)
    cache: str = ""  # where shards of addresses are kept, and indexes of images (empty: output_dir)
    cache_gb: NotNegative = 0.0  # at most; 0: all of them
    block_shards: CountOrNone = 0  # mixed at a time; 0: all images of the data set
    workers: CountOrNone = 8  # loader processes of each rank
    # simplejpeg (a package of its own): the same pixels, faster; simplejpeg_scaled: large images at
    # a fraction of their size, other pixels, less work
    decoder: Literal["torchvision", "simplejpeg", "simplejpeg_scaled"] = "torchvision"
    # an undecodable image stops the run, or another one takes its place
    on_error: Literal["raise", "replace"] = "replace"
    max_bad_fraction: Share = 1e-4  # of images that may be replaced

    @property
    def is_measured(self) -> bool:
        """Whether its images are other than three colours of 8 bits."""
        return bool(
            self.channels != COLOURS or self.range or self.percentiles or self.pages != "first"
        )

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 1e9)


@dataclass(frozen=True)
class Online:
    """A linear classifier beside the training, on the teacher's features; it changes no weight."""

    labels: bool = False  # of data.train: whether it learns from them
    every_steps: Count = 1
    lr: Positive = 0.01  # of its SGD, constant


@dataclass(frozen=True)
class Evaluation:
    """k-NN during training, and a classifier that learns along the way."""

    queries: str = ""  # images, as data.train; empty: no evaluation
    bank: str = ""  # images; empty: data.train
    every_epochs: NotNegative = 10.0  # 0: only at the start (at_start) and at the end
    at_start: bool = True
    sizes: tuple[str, ...] = ("all",)  # names, WIDTHxDEPTH, or all
    bank_images: CountOrNone = 0  # 0: all of them, as for query_images
    query_images: CountOrNone = 0
    # queries of a class that the bank lacks are left out; false: they are an error
    drop_unknown_classes: bool = False
    k: tuple[Count, ...] = (10, 20, 100, 200)
    report_k: Count = 20  # the one of k that curves show
    temperature: Positive = 0.07
    resize: Count = 256  # short side in pixels, before the central crop
    crop: Count = 224
    batch_size: Count = 256
    online: Online = field(default_factory=Online)


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from."""

    every_epochs: Positive = 1.0
    keep_last: Count = 3
    # those at multiples of it stay beside the last ones; 0: none
    keep_every_epochs: NotNegative = 0.0
    # written while training goes on, from a copy in the CPU's memory (16 bytes per
    # parameter, shared out among the ranks)
    background: bool = True


@dataclass(frozen=True)
class Recipe:
    """A whole run."""

    output_dir: str = ""  # the run's folder
    # the network that a new run begins with, in the place of random weights: a folder that
    # poa-ds extract or init wrote, RUN, or RUN:SIZE
    start: str = ""
    seed: CountOrNone = 0
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    max_bad_steps: Count = 10  # non-finite steps in a row that stop the run
    log_every: Count = 10  # steps
    # a rank that makes no progress for so long ends the run; 0: never. Set-up, the first step,
    # the start of an evaluation and a checkpoint get 600 at least
    step_timeout_seconds: NotNegative = 600.0
    # where metrics go besides metrics.jsonl: mlflow, tensorboard (the folder tensorboard), wandb
    tracking: Annotated[str, NamesOf(("mlflow", "tensorboard", "wandb"), alone="none")] = "mlflow"
    report: bool = True  # report.html in output_dir, written along the way
    draws: Policy = "balanced"  # of elastic sizes (docs/method.md 3)
    kernels: Literal["auto", "reference", "triton"] = "auto"  # what the operators run
    compile: bool = False  # torch.compile for the plain functions among the operators
    mlflow: Mlflow = field(default_factory=Mlflow)
    backbone: Backbone = field(default_factory=Backbone)
    heads: Heads = field(default_factory=Heads)
    objective: Objective = field(default_factory=Objective)
    slimmable: Slimmable = field(default_factory=Slimmable)
    distill: Distill = field(default_factory=Distill)
    finetune: Finetune = field(default_factory=Finetune)
    crops: Crops = field(default_factory=Crops)
    augmentation: Augmentation = field(default_factory=Augmentation)
    masks: Masks = field(default_factory=Masks)
    batch: Batch = field(default_factory=Batch)
    schedule: Schedule = field(default_factory=Schedule)
    optimizer: Optimizer = field(default_factory=Optimizer)
    data: Data = field(default_factory=Data)
    evaluation: Evaluation = field(default_factory=Evaluation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)

    @property
    def trackers(self) -> frozenset[str]:
        """The names in `tracking`; none at all for `none`."""
        return frozenset(part.strip() for part in self.tracking.split(",")) - {"none"}

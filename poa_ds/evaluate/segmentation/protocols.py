"""The published ways to learn a head, as the numbers that options take the place of."""

import argparse
from dataclasses import dataclass

from poa_ds.evaluate.features import TAPS
from poa_ds.evaluate.segmentation.heads import (
    DECAYS,
    RATE,
    RATES,
    WARM_UP,
    WEIGHT_DECAY,
    Decay,
    Schedule,
)
from poa_ds.evaluate.segmentation.maps import DENSE4, LAST, stages
from poa_ds.system import arguments
from poa_ds.system.errors import UsageError

DINOV3, POA = "dinov3", "poa"
FEW, EPOCHS = 1000, 100  # below so many images


@dataclass(frozen=True)
class Protocol:
    """rates: one of them is chosen. warm_up: a share of the steps. The rest as options name it."""

    taps: str
    steps: int
    rates: tuple[float, ...]
    warm_up: float
    decay: Decay
    weight_decay: float
    cat_max_ratio: float
    distort: bool


PROTOCOLS = {
    # the linear head on ADE20K, but for the rates: its own is RATE
    DINOV3: Protocol(LAST, 40_000, RATES, WARM_UP, "cosine", WEIGHT_DECAY, 1.0, False),
    # of the ViT-B of its table 2
    POA: Protocol(DENSE4, 160_000, (7e-4,), 1500 / 160_000, "linear", 0.05, 0.75, True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options whose defaults a protocol gives."""
    parser.add_argument(
        "--protocol",
        choices=[*PROTOCOLS],
        default=DINOV3,
        help="whose numbers are the defaults of taps, steps, rates, warm-up, decay, weight decay, "
        "crops and colours (%(default)s; poa: its ViT-B's linear head)",
    )
    parser.add_argument(
        "--taps",
        choices=[LAST, DENSE4, *TAPS],
        help="blocks whose patch tokens are read: the last, or four, those of POA's dense tasks, "
        f"of its classifiers, or DINOv2's ({_defaults('taps')})",
    )
    parser.add_argument(
        "--stages",
        type=stages,
        metavar="N,...",
        help="of a Swin or ResNet: maps of these, 1 to 4, brought to stride 8 (the last one as it "
        "is)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=arguments.count, help=f"({_defaults('steps')}, for {FEW:,} images on)"
    )
    length.add_argument(
        "--epochs", type=arguments.count, help=f"({EPOCHS} for fewer than {FEW:,} images)"
    )
    parser.add_argument(
        "--learning-rates",
        type=arguments.rates,
        metavar="RATE,...",
        help="(1e-4, 3e-4, 1e-3 and 3e-3; poa: 7e-4)",
    )
    parser.add_argument(
        "--warmup-steps", type=arguments.whole, help="(1,500 of the protocol's, in proportion)"
    )
    parser.add_argument("--decay", choices=DECAYS, help=f"of the rate, to 0 ({_defaults('decay')})")
    parser.add_argument(
        "--weight-decay", type=arguments.positive, help=f"({_defaults('weight_decay')})"
    )
    parser.add_argument(
        "--cat-max-ratio",
        type=arguments.share,
        help="most of a crop to learn from may be of one class, where one of ten tries is such a "
        f"crop ({_defaults('cat_max_ratio')}: any)",
    )
    parser.add_argument(
        "--distort",
        action=argparse.BooleanOptionalAction,
        help="change brightness, contrast, saturation and hue of crops to learn from "
        "(--no-distort; poa: yes)",
    )


def _defaults(name: str) -> str:
    dinov3, poa = (getattr(one, name) for one in PROTOCOLS.values())
    return f"{dinov3}; poa: {poa}" if isinstance(dinov3, str) else f"{dinov3:,}; poa: {poa:,}"


def given(args: argparse.Namespace, name: str) -> object:
    """The option, or the protocol's number where there is none."""
    value = getattr(args, name)
    return getattr(PROTOCOLS[args.protocol], name) if value is None else value


def steps_of(images: int, args: argparse.Namespace) -> int:
    """By the number of all images, damaged ones and those that are held out too."""
    if args.epochs or not (args.steps or images >= FEW):
        return -(-(args.epochs or EPOCHS) * images // args.batch)
    return args.steps or PROTOCOLS[args.protocol].steps


def schedule_of(steps: int, args: argparse.Namespace) -> Schedule:
    """How the rates rise and fall. UsageError: they rise to the end."""
    warm = args.warmup_steps
    if warm is None:
        warm = round(PROTOCOLS[args.protocol].warm_up * steps)
    if warm >= steps:
        raise UsageError(f"--warmup-steps {warm:,} are not fewer than all {steps:,} steps")
    return Schedule(steps, warm, given(args, "decay"), given(args, "weight_decay"))


def rates_of(args: argparse.Namespace) -> tuple[float, ...]:
    """Those among which one is chosen, or the one."""
    usual = PROTOCOLS[args.protocol].rates
    own = (RATE,) if args.published and args.protocol == DINOV3 else usual
    return args.learning_rates or own

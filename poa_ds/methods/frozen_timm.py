"""A frozen teacher of timm's: timm:NAME=FILE, an architecture by its name, weights on this machine.

Nothing is downloaded, and no file is read that could run code.
"""

import difflib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from poa_ds.checkpoint.deployed import differences, shapes
from poa_ds.system.errors import UserError

PREFIX, ENDING = "timm:", ".safetensors"


def parsed(text: str, key: str) -> tuple[str, Path]:
    """(name, file) of timm:NAME=FILE. UserError: it is not that, or there is no such file."""
    name, equals, place = text.removeprefix(PREFIX).partition("=")
    if not (name and equals and place):
        raise UserError(
            f"{key} {text}: write {PREFIX}NAME=FILE{ENDING}, weights on this machine (nothing is"
            " downloaded)"
        )
    if not place.endswith(ENDING):
        raise UserError(
            f"{key} {text}: {place} is no {ENDING} file; others may run code when they are read,"
            " save its state dict with safetensors.torch.save_file"
        )
    file = Path(place).expanduser()
    if not file.is_file():
        raise UserError(f"{key} {text}: there is no file {place}")
    return name, file


def built(name: str, key: str) -> nn.Module:
    """The network of that name with random weights, in eval mode, without its classifier; for
    images of any side where timm has such an option. UserError: timm has no such network.
    """
    try:
        import timm  # seconds, and not every machine has it
    except ImportError as error:
        raise UserError(f"{key} {PREFIX}{name} needs timm: pip install timm") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
        raise UserError(f"{key} {PREFIX}{name}: timm {timm.__version__} has no such model; {hint}")
    try:
        made = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True)
    except TypeError:  # an architecture that has no such option
        made = timm.create_model(name, pretrained=False, num_classes=0)
    return made.eval()


def channels(network: nn.Module, what: str, side: int, key: str) -> int:
    """Of its embedding. UserError: the network, on the meta device, takes no such images."""
    try:
        return network(torch.empty(1, 3, side, side, device="meta")).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(f"{what}: {key} does not take such images: {error}") from error


def load(network: nn.Module, file: Path, key: str) -> nn.Module:
    """The network with the weights of the file, all of them but the classifier's."""
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{key}: {file} is missing or damaged: {error}") from error
    wanted = network.state_dict()
    ends = network.pretrained_cfg.get("classifier") or ()
    ends = (ends,) if isinstance(ends, str) else tuple(ends)
    left = [n for n in found if n not in wanted and n.startswith(tuple(f"{e}." for e in ends))]
    kept = {n: t for n, t in found.items() if n not in left}
    problems = differences(shapes(wanted), shapes(kept))
    if problems:
        raise UserError(f"{key}: {file} does not fit that network: {'; '.join(problems)}")
    network.load_state_dict(kept, strict=True)
    return network

"""timm:NAME: weights of timm's models, where the Hugging Face hub's programs keep them.

Nothing is fetched unless that is asked for; what and how large is told first.
"""

import difflib
import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poa_ds.methods.frozen_timm import PREFIX
from poa_ds.system.console import say
from poa_ds.system.errors import UserError

NAMES = ("model.safetensors", "pytorch_model.bin")  # of weights, the better first
BESIDE = ("config.json", "LICENSE*")  # fetched with them
KILO, MEGA = 1e3, 1e6


@dataclass(frozen=True)
class Model:
    """One of timm's with weights on the hub. licence: its short name there, or empty."""

    name: str
    repository: str
    files: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str


def model(source: str) -> Model:
    """Of timm:NAME. UserError: there is no such model, or the hub has no weights of it."""
    name = source.removeprefix(PREFIX)
    try:
        import timm  # seconds, and not every machine has it
    except ImportError as error:
        raise UserError(f"{source} needs timm: pip install timm") from error
    known = timm.list_pretrained()
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # an architecture that has no weights of that name
        found = None
    if found is None or not found.hf_hub_id:
        kin = [other for other in known if other.startswith(f"{name.split('.')[0]}.")]
        near = kin or difflib.get_close_matches(name, known, n=3)
        hint = f"there is {' or '.join(near[:4])}" if near else "timm.list_pretrained() lists them"
        raise UserError(f"{source}: timm {timm.__version__} knows no such weights; {hint}")
    return Model(
        name=f"{found.architecture}.{found.tag}" if found.tag else name,
        repository=found.hf_hub_id,
        files=(found.hf_hub_filename,) if found.hf_hub_filename else NAMES,
        mean=found.mean,
        std=found.std,
        licence=found.license or "",
    )


def weights(wanted: Model, *, download: bool) -> Path:
    """The file on this machine. UserError: it is not here (and may not come), or cannot come."""
    found = _cached(wanted)
    if found is None and download:
        _fetch(wanted)
        found = _cached(wanted)
    if found is None:
        raise UserError(
            f"{PREFIX}{wanted.name} is not on this machine ({_hub().constants.HF_HUB_CACHE} has no"
            f" {wanted.files[0]} of {wanted.repository}): the same command with --download fetches"
            f" it, and so does\n  hf download {wanted.repository} {wanted.files[0]} config.json"
        )
    return found


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise UserError(
            f"{PREFIX}NAME needs huggingface_hub: pip install huggingface_hub (or name the file of"
            " weights itself)"
        ) from error
    return huggingface_hub


def _cached(wanted: Model) -> Path | None:
    hub = _hub()
    places = (hub.try_to_load_from_cache(wanted.repository, name) for name in wanted.files)
    return next((Path(place) for place in places if isinstance(place, str)), None)


def _fetch(wanted: Model) -> None:
    """Weights and what goes with them, into the hub's cache."""
    hub = _hub()
    try:
        reader = hub.HfApi(endpoint=hub.constants.ENDPOINT)
        there = reader.model_info(wanted.repository, files_metadata=True).siblings
        sizes = {file.rfilename: file.size or 0 for file in there}
        chosen = [name for name in wanted.files if name in sizes][:1]
        if not chosen:
            raise UserError(f"{wanted.repository} on the hub has none of {', '.join(wanted.files)}")
        chosen += [n for n in sizes if any(fnmatch.fnmatch(n, part) for part in BESIDE)]
        told = ", ".join(f"{name} ({_bytes(sizes[name])})" for name in chosen)
        say(
            f"from {hub.constants.ENDPOINT}/{wanted.repository}: {told}, licence"
            f" {wanted.licence or 'unknown'}, to {hub.constants.HF_HUB_CACHE}"
        )
        for name in chosen:
            hub.hf_hub_download(wanted.repository, name, endpoint=hub.constants.ENDPOINT)
    except hub.errors.GatedRepoError as error:
        raise UserError(
            f"{PREFIX}{wanted.name}: its licence ({wanted.licence}) is to be accepted on"
            f" {hub.constants.ENDPOINT}/{wanted.repository}, then `hf auth login` and again"
        ) from error
    except (OSError, hub.errors.HTTPError) as error:
        raise UserError(
            f"{PREFIX}{wanted.name} cannot be fetched from {hub.constants.ENDPOINT}: {error}"
        ) from error


def _bytes(size: int) -> str:
    return f"{size / MEGA:.1f} MB" if size >= MEGA else f"{size / KILO:.1f} kB"

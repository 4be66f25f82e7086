"""poa-ds publish: one size as a folder for the hub of Hugging Face, uploaded on request alone."""

import argparse
import re
from pathlib import Path

from poa_ds.checkpoint.deployed import find_teacher, licence_of, load_teacher
from poa_ds.deploy.card import card
from poa_ds.deploy.extract import one_size, style
from poa_ds.export.extract import extract
from poa_ds.export.folder import CARD, WEIGHTS, Export, Style, check_images
from poa_ds.model import form
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from poa_ds.system import paths
from poa_ds.system.console import tell
from poa_ds.system.errors import UsageError, UserError
from poa_ds.system.run_folder import RunFolder

REPOSITORY = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", re.ASCII)
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.-]*")  # of licences on the hub


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `poa-ds publish`."""
    parser.add_argument(
        "run", type=paths.path, metavar="RUN", help="output directory, or one teacher"
    )
    parser.add_argument("--size", required=True, help="one name or WIDTHxDEPTH")
    parser.add_argument(
        "--out", type=paths.path, required=True, metavar="HUB_FOLDER", help="folder to write"
    )
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="what the weights are given under, by the hub's identifier, such as apache-2.0 or "
        "cc-by-nc-4.0 (needed unless LICENSE.weights came with the run's first weights)",
    )
    parser.add_argument(
        "--format",
        choices=list(WEIGHTS),
        help="as of poa-ds extract (hf where transformers can express the size, else timm, else "
        "state-dict)",
    )
    parser.add_argument("--half", action="store_true", help="weights in 16 bits")
    parser.add_argument("--step", type=int, help="of the teacher (the newest)")
    parser.add_argument(
        "--images", type=paths.path, metavar="SHARDS", help="of the check, as of poa-ds extract"
    )
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", help="upload the folder to this model of the hub, too"
    )
    parser.add_argument(
        "--private", action="store_true", help="a new --repo is seen by its owner alone"
    )


def run(args: argparse.Namespace) -> int:
    """Write and check the folder, upload it where that is asked for, and say what was done."""
    if args.repo is not None and not REPOSITORY.fullmatch(args.repo):
        raise UsageError(f"--repo {args.repo}: a model of the hub is named OWNER/NAME")
    if args.private and args.repo is None:
        raise UsageError("--private is of --repo, which is not given")
    if args.licence is not None and not IDENTIFIER.fullmatch(args.licence):
        raise UsageError(
            f"--licence {args.licence}: the hub's identifiers are of the form apache-2.0"
        )
    model, recipe, step = load_teacher(args.run, args.step)
    source, size = find_teacher(args.run, args.step), one_size(model, recipe, args.size)
    if not args.licence and not licence_of(source):
        raise UsageError(
            "what is published needs a licence: --licence apache-2.0, or another of the hub's"
        )
    images, what = check_images(recipe, args.images)
    export = Export(
        model,
        recipe,
        step,
        str(source),
        _style(model, size, args.format),
        half=args.half,
        told_source=f"{RunFolder.around(source).path.absolute().name}, step {step}",
    )
    texts = {CARD: card(export, size, args.licence or "")}
    difference = export.write(size, extract(model, size), args.out, images, texts)
    tell(f"{size}, {model.parameter_count(size):,} parameters, for {export.style}: {args.out}")
    tell(f"  largest difference to the elastic network on {what}: {difference:.2e}")
    if args.repo is None:
        tell(f"  nothing was uploaded: `hf upload OWNER/NAME {args.out}`, or --repo OWNER/NAME")
    else:
        tell(f"  uploaded: {upload(args.out, args.repo, private=args.private)}")
    return 0


def _style(model: ElasticBackbone, size: Subnet, asked: Style | None) -> Style:
    if asked or form.of(model.kind).not_hf(model.shape, size):
        return style(model, size, asked)
    return "hf"


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Put the files into that model of the hub, made where there is none; its address.

    UserError: the hub does not answer, or refuses.
    """
    import huggingface_hub  # slow
    from huggingface_hub import constants, errors

    hub = huggingface_hub.HfApi(endpoint=constants.ENDPOINT)
    try:
        address = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="poa-ds publish")
    except ValueError as error:  # of the card's head
        raise UserError(
            f"{folder} is written, but {constants.ENDPOINT} does not take its README.md: {error}; "
            "it may not know the licence: give another --licence"
        ) from error
    except (OSError, errors.HTTPError) as error:
        refused = getattr(getattr(error, "response", None), "status_code", 0) in (401, 403)
        first = "after `hf auth login` with a token that may write, " if refused else ""
        raise UserError(
            f"{folder} is written, but {constants.ENDPOINT}/{repository} did not take it: {error};"
            f" {first}the same command again uploads it"
        ) from error
    return str(address)

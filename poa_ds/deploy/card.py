"""The model card: what a size is, how to use it, what was measured of it and by which protocol.

Numbers are the run's own; what was not measured is said not to be. Paths of this machine and
passwords in addresses are not told.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from poa_ds.checkpoint.deployed import licence_of
from poa_ds.evaluate import results, score_rows
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.export.folder import Export, Style
from poa_ds.model import form
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Data, Recipe
from poa_ds.system.addresses import without_passwords
from poa_ds.system.errors import UserError
from poa_ds.system.json_text import parse_object
from poa_ds.system.printable import printable
from poa_ds.system.run_folder import LICENCE, RunFolder
from poa_ds.system.typed_yaml import plain

LIBRARIES: dict[Style, str] = {
    "timm": "timm",
    "hf": "transformers",
    "state-dict": "pytorch",
    "onnx": "onnx",
}
PAPER = "[POA, Pre-training Once for Models of All Sizes](https://arxiv.org/abs/2408.01031)"


def card(export: Export, subnet: Subnet, licence: str = "") -> str:
    """README.md of the folder that `export` writes of that size.

    licence: the hub's identifier of what the weights are given under; empty: that of
    LICENSE.weights, or none is named. UserError: a file of the run is damaged.
    """
    files = RunFolder.around(Path(export.source))
    parts = [
        _front(export, licence),
        f"# {_title(export, files)}, size {subnet}\n",
        _what(export, subnet),
        _use(export, subnet),
        _worth(export, subnet, files),
        _data(export, files),
        _terms(export, licence),
    ]
    return "\n".join(parts)


def _front(export: Export, licence: str) -> str:
    """What the hub reads: a YAML head of fixed words."""
    lines = [f"library_name: {LIBRARIES[export.style]}", "pipeline_tag: image-feature-extraction"]
    if licence:
        lines.append(f"license: {json.dumps(licence)}")
    elif licence_of(Path(export.source)):
        lines += ["license: other", f"license_name: {LICENCE}", f"license_link: {LICENCE}"]
    lines += ["tags:", "- elastic", "- self-supervised", "- vision"]
    return "\n".join(["---", *lines, "---", ""])


def _title(export: Export, files: RunFolder) -> str:
    named = export.recipe.mlflow.run_name or files.path.absolute().name
    return _text(named)


def _text(text: str) -> str:
    """Text from outside as a part of a line: nothing in it is markdown or HTML."""
    shown = printable(without_passwords(text))
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#!|&~" else c for c in shown)


def _what(export: Export, subnet: Subnet) -> str:
    model, recipe = export.model, export.recipe
    whole, crop = model.space.intact, recipe.evaluation.crop
    cut = "the whole network" if subnet == whole else f"a slice of the network of {whole}"
    told = f"It was {export.made}. " if export.made else ""
    bits = "16" if export.half else "32"
    flops = derived.shape(recipe).flops if model.space == derived.space(recipe) else None
    cost = (
        f", {flops(subnet, crop) / 1e9:.3g} GFLOPs for an image of {crop} pixels" if flops else ""
    )
    origin = (
        f"of one elastic pre-training run of all sizes without labels (method"
        f" `{recipe.objective.method}`, after {PAPER}), step {export.step:,}"
        if export.step
        else "of weights that were not trained here, such as imported ones"
    )
    title, width = form.of(model.kind).title, model.feature_width(subnet)
    return (
        f"A {title} with {model.parameter_count(subnet):,} parameters{cost}: {cut},"
        f" {origin}. {told}It gives features, {width} numbers for an image, and has no classifier."
        f" Weights are kept in {bits} bits.\n"
    )


def _use(export: Export, subnet: Subnet) -> str:
    evaluation, augmentation = export.recipe.evaluation, export.recipe.augmentation
    code = "\n".join(line.strip() for line in export.usage(subnet, Path(".")).splitlines())
    library = {"hf": "transformers", "onnx": "onnxruntime", "state-dict": "runpy"}
    return (
        f"## Use\n\n```python\nimport {library.get(export.style, 'timm')}\n\n{code}\n```\n\n"
        f"Pixels as in evaluations: short side {evaluation.resize} (bicubic), central crop"
        f" {evaluation.crop}, values from 0 to 1 less {list(augmentation.mean)} over"
        f" {list(augmentation.std)}.{_measured(export.recipe.data)}\n"
    )


def _measured(data: Data) -> str:
    """A sentence on images that are other than three colours of 8 bits; empty: they are not."""
    if not data.is_measured:
        return ""
    ends = f", and {list(data.range)} of a file's numbers become 0 and 1" if data.range else ""
    if data.percentiles:
        ends = f", and the percentiles {list(data.percentiles)} of each of them become 0 and 1"
    return f" Images have {data.channels} channels{ends}."


def _worth(export: Export, subnet: Subnet, files: RunFolder) -> str:
    lines = ["## What was measured", ""]
    found = [
        *_knn(results.read(files.knn), export.step, str(subnet)),
        *_scores(score_rows.read(files.evaluations), export.step, str(subnet)),
    ]
    if not found or export.made:
        return "\n".join([*lines, "Nothing of this size at this step.", ""])
    note = (
        "Errors are half of the 95 % interval by the number of images; what another run, with"
        " another seed, would give is not in them."
    )
    return "\n".join([*lines, *found, note, ""])


def _knn(rows: Sequence[results.KnnRow], step: int, size: str) -> Iterator[str]:
    """A table of k; floors beside it."""
    of_size = [row for row in rows if row.step == step and size in row.knn]
    if not of_size:
        return
    row = of_size[-1]
    queries = row.protocol["queries"]["images"]
    random = row.random_weights.get(size, {})
    yield f"k-NN top-1 in %, {results.describe(row.protocol)}:\n"
    yield "| k | this size | the same with random weights | raw pixels |\n|---|---|---|---|"
    for k, value in row.knn[size].items():
        error = results.error(value, queries)
        floors = (f"{of[k]:.2f}" if k in of else "-" for of in (random, row.raw_pixels))
        yield f"| {k} | {value:.2f} ± {error:.2f} | {' | '.join(floors)} |"
    yield ""


def _scores(rows: Sequence[ScoreRow], step: int, size: str) -> Iterator[str]:
    """A table of the other evaluations, each with its protocol."""
    newest = {row.name: row for row in rows if (row.step, row.size) == (step, size)}
    if not newest:
        return
    yield "| measure, in % | this size | protocol |\n|---|---|---|"
    for name, row in newest.items():
        error = "" if row.error is None else f" ± {row.error:.2f}"
        chosen = "; chosen on these very images" if row.chosen_by == score_rows.BEST_ON_VAL else ""
        told = _text(score_rows.describe(row.protocol) + chosen)
        yield f"| {_text(name)} | {row.value:.2f}{error} | {told} |"
    yield ""


def _data(export: Export, files: RunFolder) -> str:
    recipe, count = export.recipe, _images(files)
    many = f"{count:,} images of " if count else ""
    sources = [_place(text) for text in (recipe.data.mix or [recipe.data.train]) if text]
    told = f"Trained on {many}{', '.join(sources)}." if sources else "Which images is not recorded."
    if recipe.start:
        told += f" The run began with the weights {_place(recipe.start)}."
    measured = [
        _place(text) for text in (recipe.evaluation.bank, recipe.evaluation.queries) if text
    ]
    told += f" Measured on {', '.join(measured)}." if measured else ""
    changed = _changed(recipe)
    return "\n".join(
        [
            f"## Data\n\n{told} A data set has a licence of its own.\n",
            *([f"Recipe, where it is not the default: {changed}.\n"] if changed else []),
        ]
    )


def _place(text: str) -> str:
    """The last two parts of a path or an address: the rest says where it lies, not what it is."""
    parts = [part for part in without_passwords(text).split("?")[0].split("/") if part]
    return _text("/".join(parts[-2:]))


def _images(files: RunFolder) -> int:
    if not files.derived.is_file():
        return 0
    try:
        return int(parse_object(files.derived.read_bytes()).get("images") or 0)
    except (ValueError, TypeError) as error:
        raise UserError(f"{files.derived} is damaged: {error}") from error


def _changed(recipe: Recipe) -> str:
    """Epochs, images of a step and the sections of the training that differ from the defaults."""
    usual, given = plain(Recipe()), plain(recipe)
    found = [
        f"`{section}.{key}={json.dumps(value)}`"
        for section in ("batch", "schedule", "optimizer", "crops")
        for key, value in given[section].items()
        if value != usual[section][key]
    ]
    return ", ".join(found)


def _terms(export: Export, licence: str) -> str:
    if licence:
        told = f"The weights are given under `{licence}`."
        also = f" {LICENCE} is of the weights that the run began with."
        return f"## Licence\n\n{told}{also if licence_of(Path(export.source)) else ''}\n"
    if licence_of(Path(export.source)):
        return (
            f"## Licence\n\n{LICENCE}, of the weights that the run began with, goes with these.\n"
        )
    return "## Licence\n\nNone was named: whoever gives the weights on has to choose one.\n"

"""Elastic pre-training: one backbone is trained, any of its sizes is used.

What this package itself offers keeps its name wherever it is defined. Nothing is imported before it
is asked for, so that `import poa_ds` takes no time.

    train                                         a training, in processes of its own
    sizes                                         what each size of a run costs and reaches
    load                                          the network of a run, elastic or of one size
    embed                                         features of any images, by any sizes
    ElasticViT, ElasticSwin, ElasticResNet        the backbones: (space, *, image_size, ...)
    ElasticSpace, Subnet                          which sizes there are; one of them
    extract                                       one size as a plain network, into a folder too
    from_published, to_published                  the published code's backbones, by kind
    heads_from_published, heads_to_published      and its heads
    HeadBank, Branch, Batch                       prototype heads; backbone with heads; the views
    losses, targets, slot_terms, Objective        what is minimised: single terms, or a whole slot
    optimizer, Optimizer, Schedules               how: its moving average is the teacher
"""

from importlib import import_module

_PLACES = {
    "train": "train:",  # the program's module, which can be called
    "sizes": "evaluate.listing:sizes",
    "embed": "evaluate.embed.inside:embed",
    "load": "export.load:load",
    "ElasticViT": "model.vit.network:ElasticViT",
    "ElasticSwin": "model.swin.network:ElasticSwin",
    "ElasticResNet": "model.resnet.network:ElasticResNet",
    "ElasticSpace": "model.space:ElasticSpace",
    "Subnet": "model.space:Subnet",
    "extract": "deploy.inside:extract",
    "from_published": "export.published:from_published",
    "to_published": "export.published:to_published",
    "heads_from_published": "export.published:heads_from_published",
    "heads_to_published": "export.published:heads_to_published",
    "HeadBank": "model.heads:HeadBank",
    "Branch": "model.branch:Branch",
    "Batch": "data.batch:Batch",
    "losses": "methods.losses:",
    "targets": "methods.targets:",
    "slot_terms": "methods.terms:slot_terms",
    "Objective": "recipe.tree:Objective",
    "optimizer": "engine.optim:for_student",
    "Optimizer": "recipe.tree:Optimizer",
    "Schedules": "recipe.schedules:Schedules",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, inside = _PLACES[name].partition(":")
    found = import_module(f"{__name__}.{module}")
    globals()[name] = getattr(found, inside) if inside else found
    return globals()[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])

"""The backbones by name: the one table. A new backbone is a package like these, and a line here.

A package has five modules, imported when they are asked for; shape.py does without torch, and
plain.py may be another's:

    shape.py    SHAPE    its sizes, parameters, operations and masks in numbers (model.shape.Shape)
    network.py  NETWORK  the elastic network (model.backbone.ElasticBackbone)
    names.py    FORM     its sizes outside: names, layouts, published states (model.form.Form)
    plain.py    Network  one size as a network of its own, a file that needs torch alone
    saved.py    saved, computed: memory for the backward pass and work, for `poa-ds plan`
"""

from importlib import import_module
from types import ModuleType

ARCHITECTURES = {
    "vit": "poa_ds.model.vit",
    "swin": "poa_ds.model.swin",
    "resnet": "poa_ds.model.resnet",
    "tucker": "poa_ds.model.tucker",
}


def part(name: str, module: str) -> ModuleType:
    """A module of the backbone's package."""
    return import_module(f"{ARCHITECTURES[name]}.{module}")

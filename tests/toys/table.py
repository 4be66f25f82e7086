"""The one line that each of the toys is in the package's tables."""

from poa_ds.model.architectures import ARCHITECTURES
from poa_ds.recipe.methods import METHODS


def register() -> None:
    ARCHITECTURES["bag"] = "tests.toys.bag"
    METHODS["toy dino"] = "tests.toys.dino:Dino"
    METHODS["toy three"] = "tests.toys.three:Three"
    METHODS["toy siamese"] = "tests.toys.siamese:Siamese"

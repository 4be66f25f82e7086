"""The students of one slot as the plan counts them: sizes, crops, rows, memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from poa_ds.methods.method import method
from poa_ds.model import architectures
from poa_ds.model.saved import FLOAT, Saved, Streams
from poa_ds.model.space import Subnet
from poa_ds.recipe import derived
from poa_ds.recipe.tree import Recipe

FEW_STEPS = 16  # after which a method that draws has drawn more than one size


@dataclass(frozen=True)
class Students:
    """The sizes that learn from one slot, the intact one first.

    masked: masked patches of the slot's global crops.
    """

    recipe: Recipe
    subnets: tuple[Subnet, ...]
    masked: int

    @property
    def bytes_per_number(self) -> int:
        """Of weights, activations and features."""
        return FLOAT if self.recipe.precision == "fp32" else 2

    @property
    def streams(self) -> Streams:
        """The same as their backbones see it."""
        recipe, images = self.recipe, self.recipe.batch.images_per_slot
        locals_ = (recipe.crops.local_count * images, recipe.crops.local_size)
        crops = ((2 * images, recipe.crops.global_size), *([locals_] if locals_[0] else []))
        return Streams(
            recipe.backbone,
            self.subnets,
            crops,
            bytes_per_number=self.bytes_per_number,
            channels=recipe.data.channels,
        )

    @property
    def views(self) -> int:
        """Class tokens of one student: one per crop."""
        return sum(n for n, _ in self.streams.crops)

    @property
    def cls_rows(self) -> int:
        """Class tokens of all students together."""
        return len(self.subnets) * self.views

    @property
    def sharing(self) -> int:
        """How many students the same prototype heads serve."""
        return 1 if self.recipe.heads.elastic == "own" else len(self.subnets)

    @property
    def imitates(self) -> bool:
        """Whether the others learn from the intact one too."""
        recipe = self.recipe
        options = recipe.slimmable if recipe.objective.method == "dspnet" else recipe.objective
        return len(self.subnets) > 1 and options.imitation > 0

    @property
    def patch_rows(self) -> int:
        """Masked patches of all students together."""
        return len(self.subnets) * self.masked

    def saved(self) -> Saved:
        """What all backbones keep of the slot."""
        return architectures.part(self.recipe.backbone.name, "saved").saved(self.streams)

    def computed_share(self, sequences: int) -> float:
        """Share of the sequences that residual branches run on."""
        options = self.recipe.backbone
        counted = architectures.part(options.name, "saved").computed(options, sequences)
        return counted / sequences


def most_masked(recipe: Recipe) -> int:
    """The most masked patches that a slot can have; 0 without iBOT."""
    if not recipe.objective.ibot or recipe.objective.method == "seed":
        return 0
    patches = derived.shape(recipe).grid(recipe.crops.global_size) ** 2
    count = int(2 * recipe.batch.images_per_slot * recipe.masks.probability)
    low, high = recipe.masks.ratio
    return sum(int(patches * (low + (high - low) * (i + 1) / count)) for i in range(count))


def count(recipe: Recipe) -> int:
    """How many students learn from a slot, as the recipe's method says."""
    return len(method(recipe).sizes(0, 0))


def fixed(recipe: Recipe) -> tuple[Subnet, ...] | None:
    """The students of every slot, where the recipe's method draws none."""
    sizes = method(recipe).sizes
    found = {sizes(step, 0) for step in range(FEW_STEPS)}
    return found.pop() if len(found) == 1 else None


def every_size(recipe: Recipe) -> Iterator[Students]:
    """All that may learn from a slot: of drawn students, the intact one and others of one size."""
    masked, space, others = most_masked(recipe), derived.space(recipe), count(recipe) - 1
    if always := fixed(recipe):
        yield Students(recipe, always, masked)
        return
    for subnet in dict.fromkeys(space.menu()):
        yield Students(recipe, (space.intact, *[subnet] * others), masked)

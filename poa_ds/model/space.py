"""The sizes of an elastic network as plain values: which exist, which one a step draws.

A draw is a pure function of (seed, step, slot): nothing to save, and a resumed run draws the same.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from poa_ds.system.errors import UsageError

Policy = Literal["per_slot", "same", "balanced"]
Depth = int | tuple[int, ...]


@dataclass(frozen=True, order=True)
class Subnet:
    """One size: the first `width` channels of `depth` blocks that are spread over the network.

    depth: blocks, or blocks of each stage. As text: 384x12, 96x3-5-20-3.
    """

    width: int
    depth: Depth

    def __str__(self) -> str:
        return f"{self.width}x{self.depth_text}"

    @property
    def depth_text(self) -> str:
        """The depth in words: 12, 3-5-20-3."""
        return "-".join(map(str, self.stages))

    @property
    def stages(self) -> tuple[int, ...]:
        """The depth as a tuple, of one number where there are no stages."""
        return (self.depth,) if isinstance(self.depth, int) else self.depth

    @property
    def label(self) -> str:
        """The size in metric and folder names, zero-padded so that names sort: w0384_d12."""
        return f"w{self.width:04d}_d{'-'.join(f'{d:02d}' for d in self.stages)}"

    @classmethod
    def read(cls, text: str) -> "Subnet | None":
        """The size that its text (384x12) or label (w0384_d12) stands for, else None."""
        found = re.fullmatch(r"w?(\d+)(?:x|_d)(\d+(?:-\d+)*)", text)
        if not found:
            return None
        stages = tuple(map(int, found[2].split("-")))
        return cls(int(found[1]), stages if len(stages) > 1 else stages[0])


def spread(depth: int, of: int) -> list[int]:
    """Indices of `depth` of `of` blocks: spread evenly, the first and last always."""
    return np.linspace(0, of - 1, depth).astype(int).tolist()


@dataclass(frozen=True)
class ElasticSpace:
    """All sizes of one backbone and how often each is drawn.

    small_bias: the smallest size is drawn round(small_bias ** 2) times as often as the largest
    (the published `net_select_scale`; docs/method.md 3). names: short names of some sizes.
    width_bias: the part of it that the width has (None: as much as the depth). costs: the work of
    each of `subnets()`, where width ** 2 x depth does not tell it.
    """

    widths: tuple[int, ...]
    depths: tuple[Depth, ...]
    small_bias: float = 1.0
    names: Mapping[str, Subnet] = field(default_factory=dict)
    width_bias: float | None = None
    costs: tuple[float, ...] = ()

    def __hash__(self) -> int:
        return hash((self.widths, self.depths, self.small_bias))

    @property
    def intact(self) -> Subnet:
        return Subnet(self.widths[-1], self.depths[-1])

    @property
    def smallest(self) -> Subnet:
        return Subnet(self.widths[0], self.depths[0])

    def subnets(self) -> list[Subnet]:
        """Every size once, the intact one last."""
        return [Subnet(width, depth) for width in self.widths for depth in self.depths]

    @cached_property
    def _menu(self) -> tuple[Subnet, ...]:
        # numpy's float64 linspace: torch's gives 384x17 six entries in place of seven
        width_bias = self.small_bias if self.width_bias is None else self.width_bias
        width_weights = np.linspace(width_bias, 1, len(self.widths)).tolist()
        depth_weights = np.linspace(self.small_bias, 1, len(self.depths)).tolist()
        entries = [
            subnet
            for subnet, times in zip(
                self.subnets(),
                (round(a * b) for a in width_weights for b in depth_weights),
                strict=True,
            )
            for _ in range(times)
        ]
        return tuple(s for s in entries if s != self.intact) or (self.intact,)

    def menu(self) -> list[Subnet]:
        """Every elastic size, repeated by its draw weight; the intact network is not on it."""
        return list(self._menu)

    def blocks(self, depth: int) -> list[int]:
        """Indices of the `depth` blocks that are kept of a network without stages."""
        return spread(depth, self.depths[-1])

    @cached_property
    def _depths(self) -> frozenset[Depth]:
        return frozenset(self.depths)

    @cached_property
    def _cost_of(self) -> dict[Subnet, float]:
        return dict(zip(self.subnets(), self.costs, strict=True))

    def cost(self, subnet: Subnet) -> float:
        """Work of one image relative to the intact network: linear layers dominate."""
        self.require(subnet)
        if self.costs:
            return self._cost_of[subnet] / self._cost_of[self.intact]
        return subnet.width**2 * subnet.depth / (self.intact.width**2 * self.intact.depth)

    def draw(self, step: int, slot: int, *, seed: int, slots: int, policy: Policy) -> Subnet:
        """The elastic size that `slot` (of `slots`) trains in `step`.

        per_slot: each slot walks through its own reshuffled menu; with seed 0 these are the
            sequences of the published code, a slot in the place of a rank (docs/method.md 3).
        same: all slots follow slot 0.
        balanced: a step's slots get neighbours in cost (docs/method.md 3).
        """
        menu = self._menu
        if policy == "balanced":
            return menu[_balanced(self, step, seed, slots)[slot]]
        lap, place = divmod(step, len(menu))
        walker = slot if policy == "per_slot" else 0
        return menu[_published_lap(len(menu), seed + walker, lap)[place]]

    def parse(self, text: str) -> Subnet:
        """The size called `text`: one of `names`, or WIDTHxDEPTH."""
        if text in self.names:
            return self.names[text]
        subnet = Subnet.read(text) if "x" in text else None
        if subnet is None or subnet.width not in self.widths or subnet.depth not in self.depths:
            raise UsageError(f"size {text!r} is not in the space: {self.describe()}")
        return subnet

    def require(self, subnet: Subnet) -> Subnet:
        """The same size. ValueError: it is not one of the space."""
        if subnet.width not in self.widths or subnet.depth not in self._depths:
            raise ValueError(f"size {subnet} is not in the space: {self.describe()}")
        return subnet

    def select(self, texts: str | Sequence[str]) -> list[Subnet]:
        """The sizes that "all" or a list such as "small,384x12" names, each once, sorted."""
        parts = texts.split(",") if isinstance(texts, str) else list(texts)
        chosen: set[Subnet] = set()
        for part in (p.strip() for p in parts):
            chosen.update(self.subnets() if part == "all" else [self.parse(part)])
        return sorted(chosen)

    def describe(self) -> str:
        """The allowed sizes in words."""
        names = "".join(f", {name} = {subnet}" for name, subnet in self.names.items())
        depths = str(list(self.depths))
        if not isinstance(self.depths[0], int):
            stages = zip(*self.depths, strict=True)
            depths = "-".join(f"[{min(s)}..{max(s)}]" for s in stages)
        return f"WIDTHxDEPTH with width in {list(self.widths)}, depth in {depths}{names}"


@lru_cache(maxsize=1024)
def _published_lap(entries: int, seed: int, lap: int) -> list[int]:
    rng, order = random.Random(seed), list(range(entries))
    for _ in range(lap + 1):
        rng.shuffle(order)  # in place again for each lap, as the published code does
    return order


@lru_cache(maxsize=8)
def _balanced(space: ElasticSpace, step: int, seed: int, slots: int) -> list[int]:
    """The menu entries of one step, one per slot.

    Entry numbers run on through the laps in groups of `slots`, so group `step` starts in lap
    step * slots // n. A lap's last, short group takes its missing members from the most expensive
    entries of the next lap, which then starts without them.
    """
    repeats = -(-slots // len(space.menu()))  # a menu shorter than a step counts several times
    n = len(space.menu()) * repeats
    lap = step * slots // n
    groups = _balanced_lap(space, lap, seed, slots, repeats)
    members = list(groups[step - -(-lap * n // slots)])
    random.Random(f"deal/{seed}/{step}").shuffle(members)
    return members


@lru_cache(maxsize=8)
def _balanced_lap(
    space: ElasticSpace, lap: int, seed: int, slots: int, repeats: int
) -> list[list[int]]:
    def by_cost(of_lap: int) -> list[int]:
        entries = list(range(len(menu))) * repeats
        random.Random(f"ties/{seed}/{of_lap}").shuffle(entries)
        return sorted(entries, key=lambda entry: space.cost(menu[entry]))

    menu = space.menu()
    n = len(menu) * repeats
    taken = -lap * n % slots  # by the last group of the lap before
    own = by_cost(lap)[: n - taken]
    groups = [own[i : i + slots] for i in range(0, len(own), slots)]
    missing = slots - len(groups[-1])
    groups[-1] += by_cost(lap + 1)[n - missing :] if missing else []
    # the shared group stays last in time: the next lap begins after it
    head, last = groups[:-1], groups[-1:]
    random.Random(f"groups/{seed}/{lap}").shuffle(head)
    return head + last

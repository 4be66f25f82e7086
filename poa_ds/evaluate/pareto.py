"""Which sizes are worth their cost: those that no other beats, and the cheapest good one."""

from collections.abc import Callable, Sequence
from math import inf, isnan


def front(points: Sequence[tuple[float | None, float | None]]) -> set[int]:
    """Numbers of the (cost, worth) that no other is at least as good as in both, better in one.

    A point without cost or worth (None, NaN) is never among them; equal points are together.
    """
    known = [
        (cost, worth, number)
        for number, (cost, worth) in enumerate(points)
        if cost is not None and worth is not None and not isnan(cost) and not isnan(worth)
    ]
    found, best = set(), (inf, -inf)
    for cost, worth, number in sorted(known, key=lambda point: (point[0], -point[1])):
        if worth > best[1]:
            best = (cost, worth)
        if (cost, worth) == best:
            found.add(number)
    return found


def cheapest_not_worse(
    points: Sequence[tuple[float | None, float | None]],
    between: Callable[[int, int], float | None] = lambda number, highest: None,
) -> int | None:
    """Number of the first (worth, its error) that is not shown to be worse than the highest.

    Points in the order of their cost; those without a worth do not count. between: the error of
    the difference of two points; where it is not known, the highest one's own stands for it, and 0
    where that is not known (None). Of equally high ones the first is the highest.
    """
    known = [(*point, number) for number, point in enumerate(points) if point[0] is not None]
    if not known:
        return None
    highest, error, top = max(known, key=lambda point: point[0])

    def allowed(number: int) -> float:
        found = between(number, top)
        return (error or 0.0) if found is None else found

    return next(number for worth, _, number in known if highest - worth <= allowed(number))

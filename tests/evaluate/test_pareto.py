"""The front of cost and worth against its definition, point by point."""

from math import isnan

from hypothesis import given
from hypothesis import strategies as st

from poa_ds.evaluate.pareto import cheapest_not_worse, front

NUMBER = st.integers(0, 6).map(float) | st.just(float("nan")) | st.none()


def known(point: tuple) -> bool:
    return all(x is not None and not isnan(x) for x in point)


def beaten(point: tuple[float, float], other: tuple[float, float]) -> bool:
    no_worse = other[0] <= point[0] and other[1] >= point[1]
    return no_worse and other != point


@given(st.lists(st.tuples(NUMBER, NUMBER), max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple]) -> None:
    wanted = {
        number
        for number, point in enumerate(points)
        if known(point) and not any(beaten(point, other) for other in points if known(other))
    }
    assert front(points) == wanted


def test_ties_and_what_is_unknown() -> None:
    nan = float("nan")
    points = [(1, 50.0), (1, 50.0), (2, 50.0), (1, 40.0), (0, nan), (0, None), (3, 60.0)]
    assert front(points) == {0, 1, 6}


def test_the_cheapest_within_the_error_of_the_highest() -> None:
    points = [(None, None), (0.0, 0.0), (70.0, 9.0), (72.0, 1.0), (74.0, 3.0), (73.0, 0.5)]
    assert cheapest_not_worse(points) == 3
    assert cheapest_not_worse([(None, None), (0.0, 0.0)]) == 1
    assert cheapest_not_worse([(None, None)]) is None


def test_where_no_error_is_known_the_cheapest_of_the_highest_is_taken() -> None:
    points = [(70.0, None), (72.0, None), (None, None), (72.0, None), (71.0, 3.0)]
    assert cheapest_not_worse(points) == 1
    assert cheapest_not_worse(points, lambda number, highest: 2.0 if number == 0 else None) == 0


def test_where_the_error_of_a_difference_is_known_it_decides() -> None:
    points = [(70.0, 3.0), (71.5, 3.0), (None, None), (72.0, 3.0)]
    errors = {(0, 3): 1.9, (1, 3): 0.6}
    assert cheapest_not_worse(points) == 0
    assert cheapest_not_worse(points, lambda number, highest: errors.get((number, highest))) == 1
    errors[1, 3] = 0.4
    assert cheapest_not_worse(points, lambda *pair: 0.0 if pair == (3, 3) else errors[pair]) == 3

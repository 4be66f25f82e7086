"""JSON of any kind gives an object of the wanted kind or a ValueError in one short sentence."""

import pytest

from poa_ds.system.json_text import numbers, parse, parse_object

ODD = [
    *(b"", b"{", b"[1]", b"3", b"null", b'"a"', b"{}", b'{"step": "1"}', b'{"step": -1}'),
    *(b'{"step": 1.0}', b'{"step": true}', b'{"step": 1e400}', b'{"step": %d}' % 10**30),
    *(b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"step": ' + b"9" * 5000 + b"}"),
    *(b'{"step": NaN}', b'{"step": [[1]]}', b'{"step": "' + b"x" * 9999 + b'"}'),
]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_texts_are_refused_shortly(text: bytes) -> None:
    with pytest.raises(ValueError) as error:
        parse_object(text, step=int)
    assert 0 < len(str(error.value)) < 200


@pytest.mark.parametrize("value", ['"1"', "NaN", "Infinity", "true", "null", "[]", "1e400", "{}"])
def test_a_metric_is_a_finite_number(value: str) -> None:
    with pytest.raises(ValueError, match=r"'loss' is .* not a number"):
        numbers(parse(f'{{"loss": {value}}}'))


def test_whole_and_broken_numbers_pass() -> None:
    found = parse_object(b'{"step": 3, "time": 1.5, "loss": -2}', step=int, time=float, loss=float)
    assert found == {"step": 3, "time": 1.5, "loss": -2}
    numbers(found)


def test_a_metric_of_a_run_that_diverges_may_be_huge() -> None:
    numbers(parse('{"gradient_norm/heads": 3.1e+38, "loss": -1e300}'))

"""The record of how a run ended, and what is none."""

from pathlib import Path

import pytest

from poa_ds.run import exit_status as ended
from poa_ds.system.errors import UserError

RECORD = ended.Ended(ended.STOPPED, 7, "SIGTERM")


def test_a_record_is_read_as_it_was_written_until_it_is_forgotten(tmp_path: Path) -> None:
    assert ended.read(tmp_path) is None
    ended.write(tmp_path, RECORD)
    assert ended.read(tmp_path) == RECORD
    ended.forget(tmp_path)
    ended.forget(tmp_path)
    assert ended.read(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe{", b"[1]", b"{}", b'{"status": 0, "odd": 1}', b'{"status": "0", "step": 1}'],
)
def test_what_is_no_record_counts_as_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ended.NAME).write_bytes(content)
    assert ended.read(tmp_path) is None


def test_an_old_record_is_told_from_a_new_one_that_says_the_same(tmp_path: Path) -> None:
    """`poa-ds launch` removes none: it may be that of another run, which is at work there."""
    assert ended.mark(tmp_path) is None
    ended.write(tmp_path, RECORD)
    before = ended.mark(tmp_path)
    assert before == ended.mark(tmp_path)
    ended.write(tmp_path, RECORD)
    assert ended.mark(tmp_path) != before


def test_a_record_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / ended.NAME).mkdir()
    with pytest.raises(UserError, match=ended.NAME):
        ended.forget(tmp_path)

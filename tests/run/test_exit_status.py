"""The record of how a run ended, and what is none."""

from pathlib import Path

import pytest

from poa_ds.run import exit_status
from poa_ds.system.errors import UserError
from poa_ds.system.run_folder import RunFolder

RECORD = exit_status.Ended(exit_status.STOPPED, 7, "SIGTERM")


def test_a_record_is_read_as_it_was_written_until_it_is_forgotten(tmp_path: Path) -> None:
    assert exit_status.read(tmp_path) is None
    exit_status.write(tmp_path, RECORD)
    assert exit_status.read(tmp_path) == RECORD
    exit_status.forget(tmp_path)
    exit_status.forget(tmp_path)
    assert exit_status.read(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe{", b"[1]", b"{}", b'{"status": 0, "odd": 1}', b'{"status": "0", "step": 1}'],
)
def test_what_is_no_record_counts_as_none(content: bytes, tmp_path: Path) -> None:
    RunFolder(tmp_path).ended.write_bytes(content)
    assert exit_status.read(tmp_path) is None


def test_an_old_record_is_told_from_a_new_one_that_says_the_same(tmp_path: Path) -> None:
    """`poa-ds launch` removes none: it may be that of another run, which is at work there."""
    assert exit_status.mark(tmp_path) is None
    exit_status.write(tmp_path, RECORD)
    before = exit_status.mark(tmp_path)
    assert before == exit_status.mark(tmp_path)
    exit_status.write(tmp_path, RECORD)
    assert exit_status.mark(tmp_path) != before


def test_a_record_that_cannot_be_removed_is_named(tmp_path: Path) -> None:
    RunFolder(tmp_path).ended.mkdir()
    with pytest.raises(UserError, match=r"ended\.json"):
        exit_status.forget(tmp_path)

"""Hostfiles as people write them are read by the launcher that is used."""

from pathlib import Path

from deepspeed.launcher.runner import fetch_hostfile

HOSTS = """# the quiet half of the machine

node1 slots=8
   # node2 is being mended

node3 slots=4   # a smaller one
"""


def test_comments_and_blank_lines_are_no_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(HOSTS)
    assert dict(fetch_hostfile(str(tmp_path / "hosts"))) == {"node1": 8, "node3": 4}

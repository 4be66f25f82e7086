"""What programs print: in one piece, at once, escaped, and through one module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from poa_ds.system.console import say, tell
from tests.test_architecture import modules


def test_lines_go_where_they_belong_and_escape_codes_are_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tell("two\nlines")
    say("warning: x\x1b[2J.tar\n")
    out, error = capfd.readouterr()
    assert out == "two\nlines\n" and error == "warning: x\\x1b[2J.tar\n"


def test_nobody_else_prints_to_standard_error_or_flushes() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        if name.startswith(("poa_ds", "data_tools")) and name != "poa_ds.system.console"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        for word in node.keywords
        if word.arg == "flush" or (word.arg == "file" and name != "poa_ds.cli")
    ]
    assert not wrong


def test_messages_wait_for_what_was_printed_before(tmp_path: Path) -> None:
    """A log that holds both streams shows them in the order in which they were written."""
    log = tmp_path / "log"
    code = "from poa_ds.system.console import say; print('first'); say('second')"
    with open(log, "w") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, stderr=file, check=True)
    assert log.read_text() == "first\nsecond\n"

"""~ and $VARIABLES in the arguments of every command."""

import argparse
import ast
from pathlib import Path

import pytest

from poa_ds import cli
from poa_ds.system import paths
from tests.test_architecture import modules


def test_no_argument_of_a_command_is_taken_as_a_path_as_it_stands() -> None:
    wrong = [
        f"{name}:{node.lineno}"
        for name, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text()))
        if not name.startswith("poa_kernels")  # which stand on nothing of this project
        if isinstance(node, ast.keyword) and node.arg == "type"
        if isinstance(node.value, ast.Name) and node.value.id == "Path"
    ]
    assert not wrong


def test_an_argument_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("EMPTY", "")
    assert paths.path("~/x") == Path("/h/x") and paths.path("x~/$") == Path("x~/$")
    assert paths.place("s3://b/$HOME") == "s3://b//h"
    assert paths.path("C:x/a:b") == Path("C:x/a:b")
    with pytest.raises(argparse.ArgumentTypeError, match="EMPTY is not set"):
        paths.path("$EMPTY/x")
    with pytest.raises(argparse.ArgumentTypeError, match="s3://b/x is an address"):
        paths.path("s3://b/x")  # poa-ds shard --out s3://b/x made a folder `s3:`


def test_a_command_writes_where_the_path_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check", "~/shards"]) == 2
    assert f"{tmp_path}/home/shards" in capsys.readouterr().err
    with pytest.raises(SystemExit) as status:
        cli.main(["check", "$POA_NOT_SET/shards"])
    assert status.value.code == 2 and "POA_NOT_SET is not set" in capsys.readouterr().err

"""Paths and addresses in recipes: what is expanded, what is refused."""

from pathlib import Path

import pytest

from poa_ds.recipe import load
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from poa_ds.system.typed_yaml import leaves
from tests.recipe.test_load import refused, written


def default_of(key: str) -> object:
    found: object = Recipe()
    for part in key.split("."):
        found = getattr(found, part)
    return found


FREE_TEXT = [key for key in leaves(Recipe) if type(default_of(key)) is str and not default_of(key)]


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"data": {"train": "sftp://me:hunter2@host/x"}}, "data.train"),
        ({"data": {"mix": {"sftp://me:hunter2@host/x": 1}}}, "data.mix"),
        ({"data": {"train": "q"}, "evaluation": {"bank": "s3://b?token=hunter2"}}, "bank"),
        (
            {
                "data": {"mode": "stream", "images": 9, "train": "pipe:curl -u me:hunter2 h"},
                "evaluation": {"bank": "b"},
            },
            "data.train",
        ),
        ({"evaluation": {"queries": "ftp://me:hunter2@h", "bank": "b"}}, "evaluation.queries"),
    ],
)
def test_an_address_of_images_with_a_password_is_refused_without_showing_it(
    tree: dict, key: str
) -> None:
    tree.setdefault("data", {})["cache"] = "cache"
    message = refused(tree)
    assert key in message and "holds a password" in message and "hunter2" not in message


def test_paths_are_expanded_wherever_a_recipe_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.setenv("SCRATCH", "/s")
    text = "output_dir: ~/runs/x\ndata:\n  cache: ${SCRATCH}/c\n  mix: {$SCRATCH/a: 1, b~: 2}\n"
    words = ["evaluation.queries=~", "evaluation.bank=$SCRATCH-2/$SCRATCH"]
    found = load.recipe(written(tmp_path, text), [*words, "mlflow.uri=sqlite:///~/m.db"])
    assert (found.output_dir, found.data.cache) == ("/h/runs/x", "/s/c")
    assert found.data.mix == {"/s/a": 1.0, "b~": 2.0}
    assert (found.evaluation.queries, found.evaluation.bank) == ("/h", "/s-2//s")
    assert found.mlflow.uri == "sqlite:////h/m.db"
    assert load.kept({"output_dir": "~/x"}).output_dir == "~/x"  # as an earlier version made it


@pytest.mark.parametrize("key", FREE_TEXT)
def test_every_key_of_free_text_is_a_path_or_a_name(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/h")
    words = ["data.cache=c", "evaluation.bank=b", f"{key}=~/x"]
    found: object = load.recipe(None, words)
    for part in key.split("."):
        found = getattr(found, part)
    names = ("mlflow.experiment", "mlflow.run_name")
    assert found == ("~/x" if key in names else "/h/x")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("output_dir=$POA_NOT_SET/x", "output_dir is $POA_NOT_SET/x: the variable POA_NOT_SET is"),
        ("data.train=${POA_NOT_SET}", "data.train is ${POA_NOT_SET}: the variable POA_NOT_SET is"),
        ("output_dir=~nobody-of-that-name/x", "there is no user nobody-of-that-name"),
        ("data.mix={$POA_NOT_SET: 1}", "data.mix is $POA_NOT_SET"),
        ("output_dir=runs/$(date +%F)", "$(date +%F) is a command for a shell"),
        ("data.train=`pwd`/x", "`pwd` is a command for a shell"),
        ("output_dir=s3://bucket/runs", "output_dir s3://bucket/runs is an address"),
        ("output_dir=file:/x", "output_dir file:/x is an address"),
        ("data.cache=s3://bucket", "data.cache s3://bucket is an address"),
    ],
)
def test_a_path_that_cannot_be_expanded_is_refused(word: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        load.recipe(None, [word])
    assert said in str(error.value)


def test_a_command_in_a_pipe_is_left_to_its_shell() -> None:
    command = "pipe:cat ~/x | sed s/$A/b/"
    words = ["data.mode=stream", "data.images=9", f"data.train={command}", "data.cache=c"]
    assert load.recipe(None, words).data.train == command

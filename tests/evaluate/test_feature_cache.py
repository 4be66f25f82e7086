"""Features that commands share: computed once, added to, removed unless they are kept."""

import argparse
import os
import signal
from pathlib import Path

import pytest
import torch

from poa_ds.cli import main
from poa_ds.evaluate import feature_cache
from poa_ds.evaluate.embed import command as embed
from poa_ds.evaluate.embed.files import Parts
from poa_ds.evaluate.feature_cache import Reader
from poa_ds.evaluate.feature_sets import FeatureSet
from poa_ds.system.errors import UserError
from tests.support.shards import make_shards
from tests.support.teachers import make_teacher


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_shards(tmp_path / "images", 9)
    return make_teacher(tmp_path / "run")


def reader(run: Path, sizes: str) -> Reader:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    feature_cache.add_arguments(parser)
    words = [str(run), "--sizes", sizes, "--batch-size", "2", "--workers", "0"]
    return Reader.of(parser.parse_args(words), torch.device("cpu"))


def features(run: Path, sizes: str, *, keep: bool = True) -> FeatureSet | None:
    with feature_cache.cache(reader(run, sizes), "cls", keep=keep) as cache:
        return cache.get(str(run.parent / "images"))


def test_sizes_are_added_and_equal_what_embed_writes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    write = feature_cache.write
    monkeypatch.setattr(
        feature_cache, "write", lambda *a, **k: (asked.append(a[3]["sizes"]), write(*a, **k))[1]
    )
    assert [*features(run, "32x2").files] == ["32x2"]
    assert [*features(run, "32x2,48x3").files] == ["32x2", "48x3"]
    found = features(run, "48x3")
    assert [*found.files] == ["48x3"] and asked == [["w0032_d02"], ["w0048_d03"]]
    words = ["--shards", str(tmp_path / "images"), "--sizes", "48x3", "--batch-size", "2"]
    out = tmp_path / "out"
    assert main(["embed", str(run), *words, "--workers", "0", "--out", str(out)]) == 0
    for x, wanted in zip(found.rows("48x3"), FeatureSet.at(out).rows("48x3"), strict=True):
        assert torch.equal(x, wanted)
    [folder] = (run / "features" / "step00000003").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        *("embedding.json", "rows.jsonl", "w0032_d02.safetensors", "w0048_d03.safetensors")
    }


def test_what_was_made_for_one_command_is_removed_and_what_was_there_stays(run: Path) -> None:
    features(run, "32x2", keep=False)
    assert not (run / "features").exists()
    features(run, "32x2")
    features(run, "48x3", keep=False)
    assert [*features(run, "32x2,48x3").files] == ["32x2", "48x3"]


def test_the_next_command_goes_on_where_a_stopped_one_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write = Parts.write

    def stop_after_one(self: Parts, *args: object) -> None:
        written.append(args[0])
        write(self, *args)
        if len(written) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(embed, "PART_BATCHES", 1)
    monkeypatch.setattr(Parts, "write", stop_after_one)
    assert features(run, "32x2", keep=False) is None
    found = features(run, "32x2", keep=False)
    assert len(written) == len(set(written)) == 5 and found is not None
    assert not (run / "features").exists()


def test_what_a_killed_command_has_left_is_removed_by_the_next_or_kept(run: Path) -> None:
    for keep in (False, True):
        with (
            pytest.raises(KeyboardInterrupt),
            feature_cache.cache(reader(run, "32x2"), "cls", keep=False) as cache,
        ):
            cache.get(str(run.parent / "images"))
            raise KeyboardInterrupt
        assert (run / "features").exists()
        features(run, "32x2", keep=keep)
        assert (run / "features").exists() == keep
    features(run, "32x2", keep=False)
    assert (run / "features").exists()


def test_no_command_removes_what_another_reads(run: Path) -> None:
    with feature_cache.cache(reader(run, "32x2"), "cls", keep=False) as cache:
        found = cache.get(str(run.parent / "images"))
        for sizes in ("32x2", "48x3"):
            with pytest.raises(UserError, match="in use by an evaluation that makes features"):
                features(run, sizes, keep=sizes == "48x3")
        assert len(found.rows("32x2")[0]) == 9
    assert not (run / "features").exists() and not (run / feature_cache.LOCK).exists()
    features(run, "32x2")
    with feature_cache.cache(reader(run, "48x3"), "cls", keep=False) as cache:
        cache.get(str(run.parent / "images"))
        assert [*features(run, "32x2", keep=False).files] == ["32x2"]  # there to stay


def test_a_kill_between_files_and_their_list_loses_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features(run, "32x2")
    replace_text = feature_cache.replace_text

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_cache, "replace_text", killed)
    with pytest.raises(KeyboardInterrupt):
        features(run, "32x2,48x3")
    monkeypatch.setattr(feature_cache, "replace_text", replace_text)
    found = features(run, "32x2,48x3")
    assert len(found.rows("48x3")[0]) == 9

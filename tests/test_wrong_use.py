"""What a user gets wrong in any command: one message that names it, status 2, and nothing done."""

from pathlib import Path

import pytest

from poa_ds.cli import main
from tests.export.test_extract import run_folder
from tests.support.shards import make_shards, save


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run: with a teacher; emptied: a full disk's; shards, images and a list of them."""
    found = tmp_path_factory.mktemp("wrong use")
    (found / "run").mkdir()
    run_folder(found / "run")
    make_shards(found / "shards", count=6)
    save(found / "images" / "a" / "1.png", 1)
    (found / "emptied").mkdir()
    (found / "emptied" / "config.yaml").touch()
    (found / "list.txt").write_text("images/a/1.png\n")
    (found / "bytes.jpg").write_bytes(bytes(range(128, 256)))
    return found


# words of a command, in the folder `place` -> what it says
WRONG = {
    # a shell's variable that is not set is an empty word
    "sizes ''": "'' is no path",
    "shard folder --root '' --out new": "'' is no path",
    "shard folder --root images --out ''": "'' is no path",
    "eval knn run --queries ''": "'' is no path",
    "eval knn run --sizes ''": "'' names nothing",
    "eval linear run --sizes ,": "',' names nothing",
    "embed run --images images --out new --sizes ''": "'' names nothing",
    "look run --images images --sizes ''": "'' names nothing",
    "latency run --sizes ''": "'' names nothing",
    # numbers
    "check shards --workers -1": "--workers: '-1' is not a number from 0 on",
    "stats images --images -1": "--images: '-1' is not a number from 0 on",
    "shard photos --out new --train 0": "--train: '0' is not a number from 1 on",
    "shard photos --out new --size 0": "--size: '0' is not a number from 1 on",
    "shard photos --out new --seed -1": "--seed: '-1' is not a number from 0 on",
    "shard folder --root images --out new --images-per-shard 0": "'0' is not a number from 1 on",
    "shard folder --root images --out new --quality 101": "--quality 101: 1 to 100",
    "shard folder --root images --out new --max-pixels 0": "'0' is not a number from 1 on",
    "eval knn run --workers -1": "--workers: '-1' is not a number from 0 on",
    "eval knn run --batch-size 0": "--batch-size: '0' is not a number from 1 on",
    "eval knn run --query-images -1": "--query-images: '-1' is not a number from 0 on",
    "eval knn run --bank-images -1": "--bank-images: '-1' is not a number from 0 on",
    "embed run --images images --out new --workers -1": "'-1' is not a number from 0 on",
    "eval logistic run --shots 1,2": "--shots 1: of one image a class none can be held out",
    "report run --max-mb nan": "--max-mb: 'nan' is not a number above 0",
    "bench data --images 0": "--images: '0' is not a number from 1 on",
    "bench data --rate nan": "--rate: 'nan' is not a number above 0",
    "mlflow run --port 0": "--port: '0' is not a number from 1 on",
    "mlflow run --port 65536": "--port: '65536' is not a port, 1 to 65535",
    "bench index --samples 0": "--samples: '0' is not a number from 1 on",
    "bench index --workers 1,0": "--workers: '0' is not a number from 1 on",
    "bench data --workers 1,": "--workers: '' is not a number from 1 on",
    "launch --max-restarts -1 -- --config photos": "'-1' is not a number from 0 on",
    "launch --nproc 0 -- --config photos": "--nproc: '0' is not a number from 1 on",
    "demo --out new --seed -1": "--seed: '-1' is not a number from 0 on",
    # places
    "bench index --samples 9 --place nowhere": "--place nowhere: no such folder",
    "shard list --list list.txt --root nowhere --out new": "--root nowhere: no such folder",
    "stats bytes.jpg": "bytes.jpg is no list of paths, one a line: it is no text",
    "twin emptied --size 32x2": "emptied/config.yaml is empty: it is not the recipe that a run",
    # where nothing can be written, before the work that it was for
    "look run --images images --out images": "--out images is a folder: name a file in it",
    "look run --images images --out no/look.html": "--out no/look.html: there is no folder no",
    "report run --out no/report.html": "--out no/report.html: there is no folder no",
    "compare run shards --out no/x.png": "--out no/x.png: there is no folder no",
    "twin run --size 32x2 --out images": "--out images is a folder: name a file in it",
    "bench step --json images": "--json images is a folder: name a file in it",
    "bench twins --json no/x.json": "--json no/x.json: there is no folder no",
    "bench data --json images": "--json images is a folder: name a file in it",
    "bench heads --json images": "--json images is a folder: name a file in it",
    "bench gradients --json images": "--json images is a folder: name a file in it",
    # options without the one that they belong to
    "sizes run --accept-unsteady": "--accept-unsteady is for --max-latency TIME or --cost latency",
}


@pytest.mark.parametrize("command", WRONG)
def test_wrong_use_is_one_message_and_leaves_nothing(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    status, said = ended(command, capsys)
    assert (status, WRONG[command] in said) == (2, True), said
    assert said.strip().count("\n") == 0 or said.startswith("usage: poa-ds")
    assert sorted(place.rglob("*")) == before


def ended(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit status, what the command said)."""
    words = [word.replace("''", "") for word in command.split(" ")]
    try:
        status = main(words)
    except SystemExit as end:  # of argparse
        status = end.code
    return status, capsys.readouterr().err

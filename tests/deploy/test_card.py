"""The model card: the run's own numbers, lines that work, nothing of this machine."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from poa_ds import cli
from poa_ds.evaluate import results
from poa_ds.evaluate.results import KnnRow
from poa_ds.evaluate.score_rows import ScoreRow
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError
from tests.export.test_folder import made

PROTOCOL = {
    "bank": {"images": 900, "of": 900},
    "queries": {"images": 400, "of": 400},
    "crop": 64,
    "resize": 64,
    "precision": "fp32",
}


def run_of(folder: Path, **changes: object) -> Path:
    """A run whose 32x2 was measured at step 7."""
    made("vit", folder, **changes)
    row = KnnRow.of(
        7,
        PROTOCOL,
        {Subnet(32, 2): {10: 61.25, 20: 64.0}},
        raw_pixels={20: 30.0},
        random_weights={Subnet(32, 2): {10: 41.0, 20: 42.0}},
    )
    results.append(folder / "knn.jsonl", row)
    score = ScoreRow(
        *("linear", 7, "32x2", "top1", 70.5, 1.5, "val", "val", {}, 3.0),
        {"val": {"images": 400}, "crop": 64, "resize": 64, "precision": "fp32"},
        "2.9",
    )
    results.append(folder / "evaluations.jsonl", score)
    (folder / "derived.json").write_text(json.dumps({"images": 12345}))
    return folder


def card_of(run: Path, out: Path, *more: str) -> str:
    command = ["extract", str(run), "--out", str(out), *more]
    assert cli.main([*command, "--size", "32x2"]) == 0
    return (out / "README.md").read_text()


@pytest.mark.parametrize("style", ["timm", "hf", "state-dict", "onnx"])
def test_a_card_has_the_numbers_with_errors_and_its_lines_run(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = card_of(run_of(tmp_path / "run"), tmp_path / "out", "--format", style)
    head = yaml.safe_load(text.split("---")[1])
    assert head["pipeline_tag"] == "image-feature-extraction" and "license" not in head
    # 1.96 sqrt(64 x 36 / 400) = 4.70
    assert "| 20 | 64.00 ± 4.70 | 42.00 | 30.00 |" in text
    assert "| 10 | 61.25 ± 4.77 | 41.00 | - |" in text
    assert "400 queries in a bank of 900 of 900 images, crop 64 of 64, fp32" in text
    assert "| linear\\_top1\\_best\\_on\\_val | 70.50 ± 1.50 |" in text
    assert "Trained on 12,345 images" not in text  # which ones is not recorded
    assert "None was named" in text and str(tmp_path) not in text
    code = text.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path / "out")
    images = torch.zeros(2, 3, 64, 64)
    names = {"images": images.numpy() if style == "onnx" else images}
    exec(code, names)
    feature = names["found"].pooler_output if style == "hf" else names["feature"]
    assert tuple(feature.shape) == (2, 32)


def test_what_was_not_measured_is_not_told(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    command = ["extract", str(run), "--size", "48x3", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing of this size at this step." in text and "±" not in text
    assert "the whole network" in text


def test_places_passwords_and_markup_of_the_recipe_stay_out(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a_<b>_*c*")
    about = run / "teacher" / "step00000007" / "config.json"
    content = json.loads(about.read_text())
    content["config"]["data"]["train"] = "s3://me:hidden@host/private/sets/birds"
    content["config"]["data"]["cache"] = str(tmp_path / "cache")
    content["config"]["start"] = "/somebody/disk/old/run:32x2"
    about.write_text(json.dumps(content))
    text = card_of(run, tmp_path / "out")
    assert "Trained on 12,345 images of sets/birds." in text
    assert "hidden" not in text and "host" not in text and "somebody" not in text
    assert "the weights old/run:32x2" in text
    assert "# a\\_\\<b\\>\\_\\*c\\*, size 32x2" in text


def test_a_licence_of_the_first_weights_goes_with_the_card(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (run / "teacher" / "step00000007" / "LICENSE.weights").write_text("theirs")
    text = card_of(run, tmp_path / "out")
    head = yaml.safe_load(text.split("---")[1])
    assert (head["license"], head["license_link"]) == ("other", "LICENSE.weights")
    assert (tmp_path / "out" / "LICENSE.weights").read_text() == "theirs"


def test_a_damaged_file_of_the_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run")
    (run / "derived.json").write_text("{")
    command = ["extract", str(run), "--size", "32x2", "--out", str(tmp_path / "out")]
    assert cli.main(command) == UserError.exit_status
    assert "derived.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""poa-ds template: a finished ViT as a template that init, extract and start take on."""

from pathlib import Path

import pytest
import torch

from poa_ds.checkpoint.deployed import find_teacher, licence_of, load_teacher
from poa_ds.cli import main
from poa_ds.export.extract import extract
from poa_ds.export.folder import reload
from poa_ds.methods.method import method
from poa_ds.system.run_folder import LICENCE
from tests.distributed.programs.worker import recipe_with
from tests.distributed.test_backbones_ranks import BACKBONES
from tests.export.test_init import run_of


def test_a_vit_becomes_a_template_that_other_commands_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, out = run_of(tmp_path / "run", recipe_with()), tmp_path / "template"
    (find_teacher(run) / LICENCE).write_text("Of the weights.")
    assert main(["template", str(run), "--ranks", "48,64,64", "--out", str(out)]) == 0
    assert "100 % of their squares are kept" in capsys.readouterr().out
    (made, recipe, step), (model, _, _) = load_teacher(out), load_teacher(run)
    assert step == 7 and recipe.backbone.template.ranks == (48, 64, 64)
    for size in (model.space.intact, model.space.smallest):
        theirs = extract(model, size)
        for name, tensor in extract(made, size).items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-6)
    wide = tmp_path / "96x5"
    assert main(["init", str(out), "--size", "96x5", "--out", str(wide), "--check"]) == 0
    assert licence_of(wide) == "Of the weights."
    assert reload(wide)(torch.randn(1, 3, 32, 32)).shape == (1, 96)
    assert main(["sizes", str(out)]) == 0 and "64x4" in capsys.readouterr().out
    half = tmp_path / "half"
    assert main(["template", str(run), "--out", str(half)]) == 0
    assert "ranks 24, 32, 32" in capsys.readouterr().out
    assert method(load_teacher(half)[1]).networks().backbone.shape.ranks == (24, 32, 32)


def test_what_has_no_template_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    vit = run_of(tmp_path / "vit", recipe_with())
    swin = run_of(tmp_path / "swin", recipe_with(backbone=BACKBONES["swin"]))
    more = run_of(tmp_path / "more", recipe_with(backbone__registers=2))
    words = ["--out", str(tmp_path / "out")]
    for run, options, said in (
        (more, words, "has backbone.registers, a template has none"),
        (swin, words, "is a Swin: a template is of the matrices of a ViT"),
        (vit, [*words, "--ranks", "8,65,8"], "template.ranks[1] 65 is above the full rank 64"),
        (vit, ["--out", str(swin)], "is not an empty folder"),
    ):
        assert main(["template", str(run), *options]) != 0
        assert said in capsys.readouterr().err
    for ranks in ("8,8", "a,8,8"):
        with pytest.raises(SystemExit):
            main(["template", str(vit), *words, "--ranks", ranks])
        assert "--ranks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

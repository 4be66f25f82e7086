"""Scalers of a new size learn from the run's network, and the template rests."""

import json
from pathlib import Path

import pytest
import torch

from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.cli import main
from poa_ds.export.fit import Fitted, fit
from poa_ds.methods.seed import Seed
from poa_ds.model.backbone import ElasticBackbone
from poa_ds.model.space import Subnet
from tests.distributed.programs.worker import recipe_with
from tests.export.test_init import run_of
from tests.methods.test_sweet import tree
from tests.support.shards import make_shards


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fit")
    make_shards(folder / "shards", 20)
    small = {"batch": {"slots": 2, "images_per_slot": 4}, "data__workers": 0}
    return run_of(folder / "run", recipe_with(**tree([6, 24, 24]), **small))


def fitted(run: Path, steps: int) -> tuple[ElasticBackbone, Fitted]:
    whole, recipe, _ = load_teacher(run)
    own = whole.resized(Subnet(48, 5), torch.Generator().manual_seed(0))
    teacher = run / "teacher" / "step00000007"
    return own, fit(own, recipe, teacher, run.parent / "shards", steps)


def test_all_but_the_template_learns_to_see_as_the_runs_network(run: Path) -> None:
    (start, _), (own, found), (again, _) = fitted(run, 0), fitted(run, 5), fitted(run, 5)
    assert found.images == 20 and found.steps == 5 and found.last < found.first
    twice = again.state_dict()
    for name, parameter in own.named_parameters():
        before = start.get_parameter(name)
        rests = name in ("template.core", "embed.mask_token")
        assert torch.equal(parameter, before) == rests, name
        assert torch.equal(parameter, twice[name]), name
    assert own.space.intact == Subnet(48, 5) and not own.training


def test_steps_follow_the_gradients_of_seeds_loss(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out here, over both slots of two steps."""
    losses, before = [], fitted(run, 0)[0]

    def loss(self: Seed, networks, batch, target, values):
        images, slot, [target] = batch.global_crops, batch.slot, target
        z = networks.student.projector(networks.backbone(images, self.space.intact)[:, 0])
        near = torch.cat(((z * target.own).sum(-1, keepdim=True), z @ target.queue.T), 1) / 0.2
        says = (target.own * target.own).sum(-1, keepdim=True), target.own @ target.queue.T
        total = -(torch.softmax(torch.cat(says, 1) / 0.01, 1) * near.log_softmax(1)).sum(1).mean()
        losses.append((slot, total.item()))
        return total, {}

    own, found = fitted(run, 2)
    monkeypatch.setattr(Seed, "loss", loss)
    slow, other = fitted(run, 2)
    assert [slot for slot, _ in losses] == [0, 1, 0, 1]
    assert found.first == pytest.approx((losses[0][1] + losses[1][1]) / 2, rel=1e-5)
    assert other.last == pytest.approx(found.last, rel=1e-4)
    for name, parameter in own.named_parameters():
        moved, wanted = (
            x.detach() - before.get_parameter(name) for x in (parameter, slow.get_parameter(name))
        )
        assert (moved - wanted).norm() <= 0.02 * wanted.norm(), name


def test_a_fitted_size_says_how_it_came_about(run: Path, capsys: pytest.CaptureFixture) -> None:
    shards, out = run.parent / "shards", run.parent / "out"
    words = ["init", str(run), "--size", "80x3", "--out", str(out), "--check"]
    assert main([*words, "--fit", str(shards), "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "loss" in said and "scalers fitted in 2 steps on 20 images" in said
    about = json.loads((out / "config.json").read_text())["poa_ds"]
    assert "not trained itself" not in about["made"] and "2 steps on 20 images" in about["made"]
    assert main([*words, "--fit", str(shards), "--steps", "0"]) == 0
    about = json.loads((out / "config.json").read_text())["poa_ds"]
    assert "not trained itself" in about["made"]


def test_what_a_fit_cannot_do_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    few = tmp_path / "few"
    make_shards(few, 15)
    words = ["init", str(run), "--size", "80x3", "--out", str(tmp_path / "out")]
    for more, said in (
        (["--fit", str(few)], "holds 15 images: 16 are needed"),
        (["--steps", "5"], "--steps 5: they are of --fit SHARDS"),
        (["--fit", str(few), "--steps", "-1"], "'-1' is not a number from 0 on"),
    ):
        with pytest.raises(SystemExit) if "-1" in more else pytest.MonkeyPatch.context():
            assert main([*words, *more]) != 0
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

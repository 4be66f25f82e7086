"""How detectors learn: layers' rates, dropped branches, pictures, losses; the command itself."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from poa_ds.cli import main
from poa_ds.engine.optim import lr_factor
from poa_ds.evaluate import score_rows
from poa_ds.evaluate.detection import annotations, coco, pictures
from poa_ds.evaluate.detection.model import backbone_names, detector, drop_branches
from poa_ds.evaluate.detection.pyramid import Features
from poa_ds.evaluate.detection.settings import ROWS, Heads, Settings, nearest
from poa_ds.evaluate.detection.task import decay_depth, found, one_size
from poa_ds.evaluate.detection.training import losses
from poa_ds.evaluate.features import random_weights
from poa_ds.export.extract import extract
from poa_ds.model.space import Subnet
from poa_ds.recipe import load
from poa_ds.system.errors import UsageError, UserError
from tests.export.test_folder import SIZES, SMALL
from tests.support.shapes import make_coco
from tests.support.teachers import make_teacher

ROOT = Path(__file__).parents[2]


def settings(**changes: object) -> Settings:
    numbers = {"epochs": 1.0, "lr": 0.01, "layer_decay": 0.5, "drop_path": 0.0}
    numbers |= {"weight_decay": 0.05, "batch": 4, "slots": 2, "warmup_steps": 2}
    numbers |= {"short_sides": (64,), "long_side": 96, "channels": 16, "seed": 0}
    return Settings(**numbers | changes)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_coco(tmp_path_factory.mktemp("coco"), train=6, val=3)


def read(root: Path, split: str) -> annotations.Annotations:
    return annotations.read(*annotations.find(root, split), masks=True)


@pytest.mark.parametrize("kind", [*SMALL, "tucker"])
def test_each_layer_learns_at_the_rate_of_the_elastic_network_s(kind: str) -> None:
    """By shapes and by name: what is before the blocks learns least, the last block most."""
    vit = SMALL["vit"] | {"name": "tucker", "template": {"ranks": [2, 16, 16]}}
    tree = {"backbone": SMALL.get(kind, vit), "crops": {"global_size": 64, "local_size": 32}}
    recipe = load.from_dict(tree)
    model, size = random_weights(recipe), Subnet.read(SIZES.get(kind, SIZES["vit"])[0])
    state = extract(model, size)
    names = backbone_names(state, one_size(recipe, size), 64)
    assert names.keys() == dict(state.network().named_parameters()).keys()
    depth = decay_depth(names.values())
    rates = {
        plain: lr_factor(f"backbone.{own}", depth=depth, layer_decay=0.5, patch_embed_factor=1.0)
        for plain, own in names.items()
    }
    blocks = len(model.members(size))
    last, first, block = {
        "vit": ("blocks.1.mlp.fc2.weight", "patch_embed.proj.weight", "blocks.0.norm1.weight"),
        "tucker": ("blocks.1.mlp.fc2.weight", "patch_embed.proj.weight", "blocks.0.norm1.weight"),
        "swin": (f"layers.{blocks + 2}.fc2.weight", "embed.proj.weight", "layers.0.attn.qkv.bias"),
        "resnet": ("layer4.0.conv3.weight", "conv1.weight", "layer1.0.bn1.weight"),
    }[kind]
    top = 1.0 if kind == "resnet" else 0.5  # no norm follows a ResNet's last block
    assert rates[last] == top
    assert rates[block] == top * 0.5 ** (blocks - 1) and rates[first] == rates[block] / 2
    if kind != "resnet":
        assert rates["norm.weight"] == 1.0


def plain(kind: str = "vit") -> nn.Module:
    torch.manual_seed(0)
    tree = {"backbone": SMALL[kind], "crops": {"global_size": 64, "local_size": 32}}
    return extract(random_weights(load.from_dict(tree)), Subnet.read(SIZES[kind][1])).network()


@pytest.mark.parametrize("kind", ["vit", "swin"])
@torch.no_grad()
def test_branches_are_dropped_in_training_alone_and_most_of_the_last_block(kind: str) -> None:
    """What a branch adds is nothing, or enlarged by what is left out."""
    network, images = plain(kind), torch.randn(64, 3, 16, 16)
    before, seen = network(images), {}
    drop_branches(network, 0.5)
    assert torch.equal(network(images), before)
    for place, ends in enumerate(network.branches()):
        for number, end in enumerate(ends):
            end.register_forward_hook(lambda *call, at=(place, number): seen.update({at: call[2]}))
    torch.manual_seed(1)
    network.train()(images)
    dropped = {at: (x.flatten(1) == 0).all(1).float().mean().item() for at, x in seen.items()}
    assert len(dropped) == 2 * len(network.branches())
    last = len(network.branches()) - 1
    for (place, _), share in dropped.items():
        assert share == pytest.approx(0.5 * place / last, abs=0.25)
        assert place or share == 0


def test_rates_rise_and_fall_as_published() -> None:
    found = settings(lr=1.0, warmup_steps=4)
    rates = [found.rate(step, 36) for step in range(36)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [round(rates[i], 6) for i in (26, 27, 32, 33, 35)] == [1.0, 0.1, 0.1, 0.01, 0.01]
    assert [nearest(n) for n in (1, 40_000_000, 50_000_000)] == [ROWS[0], ROWS[0], ROWS[1]]
    with pytest.raises(UsageError, match="--slots 3 do not divide --batch 4"):
        settings(slots=3)


def test_a_mirrored_picture_has_its_boxes_where_its_masks_are(shapes: Path) -> None:
    train = read(shapes, "train")
    for picture in train.pictures:
        image = pictures.image_of(train, picture)
        target = pictures.target_of(train, picture, masks=True)
        mirrored, moved = pictures.flipped(image, target)
        assert torch.equal(mirrored.flip(-1), image)
        for box, mask in zip(moved["boxes"].tolist(), moved["masks"], strict=True):
            rows, columns = mask.nonzero().unbind(1)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == [float(edge) for edge in edges]


def test_an_image_of_another_size_than_its_file_says_is_told(shapes: Path, tmp_path: Path) -> None:
    path, folder = annotations.find(shapes, "train")
    content = json.loads(path.read_text())
    content["images"][0]["height"] = 63
    (tmp_path / "a.json").write_text(json.dumps(content))
    changed = annotations.read(tmp_path / "a.json", folder, masks=False)
    requests = pictures.to_learn_from(
        changed, settings(batch=6), masks=False, steps=range(1), workers=0
    )
    with pytest.raises(UserError, match=r"is \d+ x 64 pixels, a.json says \d+ x 63"):
        next(requests)


def made_detector(*, boxes: bool, heads: Heads = "plain") -> nn.Module:
    torch.manual_seed(0)
    features = Features(plain(), out=16)
    options = {"short_sides": (64,), "long_side": 96, "mean": (0.5,) * 3, "std": (0.3,) * 3}
    return detector(features, 2, boxes=boxes, heads=heads, **options)


def test_losses_fall_on_made_shapes(shapes: Path) -> None:
    """Two pictures again and again; each loss is finite, and every parameter learns."""
    train, student = read(shapes, "train"), made_detector(boxes=False).train()
    networks = nn.Module()
    networks.student = student
    some = train.pictures[:2]
    images = [pictures.image_of(train, p) for p in some]
    targets = [pictures.target_of(train, p, masks=True) for p in some]
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    totals = []
    for step in range(5):
        total, terms = losses(networks, images, targets, 0, step, 0)
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None for p in student.parameters())
        optimizer.step()
        totals.append(total.item())
    assert all(x.isfinite() for x in terms.values()) and totals[-1] < 0.7 * totals[0]
    again = [losses(networks, images, targets, 0, 7, 0)[0].item() for _ in range(2)]
    assert again[0] == again[1]  # draws follow the key


def test_boxes_alone_have_no_loss_of_masks(shapes: Path) -> None:
    train, networks = read(shapes, "train"), nn.Module()
    networks.student = made_detector(boxes=True).train()
    [picture, *_] = train.pictures
    target = pictures.target_of(train, picture, masks=False)
    _, terms = losses(networks, [pictures.image_of(train, picture)], [target], 0, 0, 0)
    assert terms.keys() == {"loss_classifier", "loss_box_reg"} | {
        "loss_objectness",
        "loss_rpn_box_reg",
    }


def test_findings_have_the_file_s_categories_and_lie_in_their_image(shapes: Path) -> None:
    """Of weights that find something everywhere."""
    val, student = read(shapes, "val"), made_detector(boxes=False).eval()
    images = [(p, pictures.image_of(val, p)) for p in val.pictures]
    assert found(student, iter(images), val.labels, most=3, asked=[15]) is None
    results = found(student, iter(images), val.labels, most=3)
    assert {r["image_id"] for r in results} == {1, 2, 3}
    sides = {p.id: (p.width, p.height) for p in val.pictures}
    for result in results:
        left, top, wide, high = result["bbox"]
        width, height = sides[result["image_id"]]
        assert (
            left >= 0 and top >= 0 and left + wide <= width + 1e-3 and top + high <= height + 1e-3
        )
        assert result["segmentation"]["size"] == [height, width]
    assert {r["category_id"] for r in results} <= {3, 7}
    assert coco.scores(val, results, "segm", draws=2)["ap"][0] >= 0
    assert coco.scores(val, results, "segm", draws=2, asked=[15]) is None


SHORT = ("--batch", 4, "--slots", 2, "--short-side", "64", "--long-side", 96, "--channels", 16)
SHORT = (*SHORT, "--workers", 0, "--lr", 0.001)


def test_the_cost_is_said_and_nothing_done(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_teacher(tmp_path / "run")
    words = ("eval", "detection", run, "--coco", shapes, *SHORT, "--sizes", "32x2,48x3")
    poa = ("--protocol", "poa", "--random-weights")
    assert main([*map(str, words), *poa, "--dry-run"]) == 0
    assert "32x2: 54 steps x 4 images of 6" in capsys.readouterr().out  # of 36 epochs
    words = (*words, "--epochs", 1)
    assert main([*map(str, words), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "32x2: 2 steps x 4 images of 6, then 3 to measure" in said and "48x3: 2 steps" in said
    assert [path.name for path in run.iterdir()] == ["teacher"]
    assert main([*map(str, words), "--batch", "3"]) == 2
    assert "--slots 2 do not divide --batch 3" in capsys.readouterr().err
    assert main([*map(str, words), "--batch-size", "3"]) == 2


def launched(out: Path, shapes: Path, ranks: int, *words: object) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", ranks, "--master_port", port)
    program = ("-m", "tests.distributed.programs.detection", out, shapes, *words)
    command = [sys.executable, *map(str, (*(launcher if ranks > 1 else ()), *program))]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_training_on_two_ranks_and_one_that_was_stopped_are_the_same(
    shapes: Path, tmp_path: Path
) -> None:
    make_teacher(tmp_path / "run")
    launched(tmp_path, shapes, 1, "whole", "stopped")
    launched(tmp_path, shapes, 2, "ranks")
    names = ("start", "whole", "stopped", "ranks")
    start, whole, stopped, ranks = (load_file(tmp_path / f"{n}.safetensors") for n in names)
    assert all(torch.equal(whole[name], tensor) for name, tensor in stopped.items())
    moved = sum((whole[n] - start[n]).square().sum() for n in start).sqrt()
    apart = sum((whole[n] - ranks[n]).square().sum() for n in start).sqrt()
    assert moved > 0 and apart < 0.02 * moved


@pytest.mark.slow
def test_the_command_trains_scores_and_leaves_rows(shapes: Path, tmp_path: Path) -> None:
    """Stopped while it measures the first size; what that has learnt is not learnt again."""
    run = make_teacher(tmp_path / "run")
    said = launched(tmp_path, shapes, 2, "command", "measuring")
    assert said.count("step 2 of 2: loss") == 1 and "stopped and saved" in said
    assert not (run / "evaluations.jsonl").exists()
    said = launched(tmp_path, shapes, 2, "command")
    assert said.count("step 2 of 2: loss") == 1  # of the second size
    rows = score_rows.read(run / "evaluations.jsonl")
    names = {row.name for row in rows}
    assert {"detection_box_ap", "detection_mask_ap50"} <= names
    assert {row.size for row in rows} == {"32x2", "48x3"} and all(
        0 <= row.value <= 100 for row in rows
    )
    assert {path.name for path in run.iterdir()} == {"teacher", "evaluations.jsonl"}

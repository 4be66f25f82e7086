"""poa-ds look: colours that are aligned, attention as the network has it, and a page by itself."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from poa_ds.checkpoint.deployed import publish
from poa_ds.cli import main
from poa_ds.evaluate.features import random_weights
from poa_ds.evaluate.look.command import NEAREST
from poa_ds.evaluate.look.seeing import brightness, colours, nearest, places, scores, see, see_map
from poa_ds.export.extract import extract
from poa_ds.export.load import load
from poa_ds.model.space import ElasticSpace
from poa_ds.model.vit.network import ElasticViT
from poa_ds.recipe import derived
from poa_ds.recipe import load as recipes
from tests.evaluate.test_knn import RECIPE
from tests.support.shards import image, make_shards
from tests.support.teachers import make_teacher

HOSTILE = '"><script>alert(1)<_script>.png'


def made_tree(root: Path, count: int = 5) -> Path:
    root.mkdir()
    for number in range(count):
        Image.fromarray(image(number, 60, 50)).save(root / f"{number}.png")
    Image.fromarray(image(0, 60, 50)).save(root / HOSTILE)  # the first once more
    return root


def test_components_are_those_of_a_slow_decomposition() -> None:
    x = torch.randn(200, 7, dtype=torch.float64) * torch.arange(1, 8)
    found, centred = scores(x), x - x.mean(0)
    _, _, v = np.linalg.svd(centred.numpy(), full_matrices=False)
    wanted = centred.numpy() @ v[:3].T
    wanted /= wanted.std(0)
    np.testing.assert_allclose(np.abs(found.numpy()), np.abs(wanted), atol=1e-8)
    assert torch.equal(scores(x[:, :2])[:, 2], torch.zeros(200, dtype=torch.float64))


def test_sizes_that_see_the_same_have_the_same_colours() -> None:
    """Features that are turned, mirrored and of more channels are the same but for the axes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 50, 6, generator=generator) * torch.tensor([5.0, 4.99, 4.98, 1, 1, 1])
    turn, _ = torch.linalg.qr(torch.randn(9, 6, generator=generator))
    first, last = colours([-x @ turn.T, x])
    torch.testing.assert_close(first, last, atol=1e-4, rtol=0)
    assert 0 <= last.min() and last.max() <= 1


def test_maps_of_sizes_that_see_the_same_are_the_same() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(30, 5, generator=generator) * torch.tensor([5.0, 4.99, 1, 1, 1])
    turn, _ = torch.linalg.qr(torch.randn(8, 5, generator=generator))
    first, last = places([-x @ turn.T, x])
    torch.testing.assert_close(first, last, atol=1e-4, rtol=0)
    assert 0 <= last.min() and last.max() <= 1
    # distances are those of the components, in one unit
    ratio = torch.pdist(last) / torch.pdist(scores(x, 2))
    torch.testing.assert_close(ratio, ratio[0].expand_as(ratio))


def turning() -> nn.Module:
    """A plain ViT with rotary positions and random values everywhere."""
    space = ElasticSpace((32, 48), (3,))
    network = ElasticViT(space, image_size=64, patch_size=8, head_dim=16, positions="rope")
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return extract(network, space.intact).network()


@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_attention_is_that_of_the_last_block(
    positions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the function that mixes the values, given one value per token in place of them."""
    network = turning() if positions == "rope" else load(make_teacher(tmp_path), "48x3")
    images = torch.randn(2, 3, 64, 64)
    seen, calls, mix = see(network, images), [], F.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        tokens = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        calls.append(mix(q, k, tokens))
        return mix(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    tokens = network.forward_features(images)
    torch.testing.assert_close(seen.attention, calls[-1].mean(1)[:, 0, 1:], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(seen.heads, calls[-1][:, :, 0, 1:], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(seen.tokens, tokens[:, 0])
    torch.testing.assert_close(seen.patches, tokens[:, 1:])
    assert seen.attention.shape == (2, 64)


def test_one_bright_patch_does_not_darken_the_others() -> None:
    attention = torch.full((1, 400), 0.001)
    attention[0, 7] = 0.9
    assert brightness(attention).min() > 0.999


def test_an_image_never_finds_itself_or_its_copy() -> None:
    tokens = torch.tensor([[1.0, 0], [1, 0], [1, 0.1], [0, 1]])
    same = torch.tensor([[i == j or {i, j} == {0, 1} for j in range(4)] for i in range(4)])
    cosines, numbers = nearest(tokens, tokens, same, 2)
    assert numbers.tolist()[:2] == [[2, 3], [2, 3]]
    assert cosines[0, 0] == pytest.approx(1 / 1.01**0.5) and set(numbers[3].tolist()) <= {0, 1, 2}


def test_the_page_stands_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run, tree = make_teacher(tmp_path / "run"), made_tree(tmp_path / "tree")
    (tree / "cut.png").write_bytes((tree / "1.png").read_bytes()[:70])
    out, words = tmp_path / "look.html", ["--sizes", "32x2,48x3", "--images", str(tree)]
    assert main(["look", str(run), *words, "--out", str(out), "--shown", "3"]) == 0
    assert "cut.png is left out" in capsys.readouterr().err
    text = out.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\((?!data:)|https?:", text)
    assert text.count("<img ") == 3 * (1 + 2 * 2)
    assert text.count('class="map"') == 2
    header = r"<th>image</th><th>[^<]*32x2</th><th>attention</th><th>[^<]*48x3</th>"
    assert re.search(header, text)
    assert text.count("background-image") == 6
    assert main(["look", str(run), *words, "--out", str(out), "--shown", "3", "--heads"]) == 0
    text = out.read_text()
    assert text.count('alt="head ') == 3 * (2 + 3)  # 16 channels a head
    assert re.search(header, text)


@pytest.mark.parametrize("shards", [False, True])
def test_neighbours_may_come_from_other_images(
    shards: bool, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Of a tree or of shards, never the picture itself, nearest first."""
    run, tree = make_teacher(tmp_path / "run"), made_tree(tmp_path / "tree", 3)
    other = tmp_path / "other"
    if shards:
        make_shards(other, 40)
    else:
        other.mkdir()
        for number in range(40):
            Image.fromarray(image(number, 60, 50)).save(other / f"{number:02d}.png")
        (other / "cut.png").write_bytes((other / "01.png").read_bytes()[:70])
    out, words = tmp_path / "look.html", ["--sizes", "32x2,48x3", "--images", str(tree)]
    words += ["--reference", str(other), "--shown", "2", "--out", str(out)]
    assert main(["look", str(run), *words]) == 0
    printed = capsys.readouterr()
    assert f"and {40 + (not shards)} to find neighbours in" in printed.out
    assert ("cut.png is left out" in printed.err) is not shards
    text = out.read_text()
    assert "Nearest images of 40 others" in text
    [table] = re.findall(r"Nearest images.*?<table>(.*?)</table>", text, re.S)
    found = re.findall(r'"t r(\d+)" title="([^"]+)"></span><br>(-?[\d.]+)<', table)
    assert len(found) == 2 * 2 * NEAREST
    used = {number for number, _, _ in found}
    assert used == set(re.findall(r"\.r(\d+)\{background", text))
    if not shards:  # image 0 of the tree is also there under another name
        first = [name for _, name, _ in found[: 2 * NEAREST]]
        assert not {"00.png"} & set(first)
    cosines = [float(cosine) for _, _, cosine in found[:NEAREST]]
    assert cosines == sorted(cosines, reverse=True)


def test_the_nearest_of_a_reference_are_those_of_a_slow_search(tmp_path: Path) -> None:
    tokens, others = torch.randn(3, 6), torch.randn(20, 6)
    cosines, numbers = nearest(tokens, others, torch.zeros(3, 20, dtype=torch.bool), 4)
    for i, token in enumerate(tokens):
        slow = sorted(
            (-F.cosine_similarity(token, o, dim=0).item(), n) for n, o in enumerate(others)
        )
        assert numbers[i].tolist() == [n for _, n in slow[:4]]
        assert cosines[i].tolist() == pytest.approx([-c for c, _ in slow[:4]], abs=1e-6)


def test_a_dry_run_and_bad_input_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run, tree = str(make_teacher(tmp_path / "run")), made_tree(tmp_path / "tree")
    out = tmp_path / "look.html"
    words = ["look", run, "--sizes", "32x2", "--out", str(out), "--images"]
    assert main([*words, str(tree), "--dry-run"]) == 0
    assert "6 of 6 images at 160 px x 1 sizes" in capsys.readouterr().out
    assert main([*words, str(tree), "--pixels", "33"]) == 2
    assert "not a multiple of backbone.patch_size 8" in capsys.readouterr().err
    assert main([*words, str(tree), "--most", "1"]) == 1
    assert "two are needed" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "nowhere")]) == 1
    assert not out.exists()


@pytest.mark.parametrize("name", ["photos_resnet.yaml", "photos_swin.yaml"])
def test_a_network_without_class_token_shows_its_patches_and_neighbours(
    name: str, tmp_path: Path
) -> None:
    """Their mean is its class feature, that of the plain network of its size."""
    recipe = recipes.recipe(RECIPE.with_name(name), [])
    model = random_weights(recipe)
    tensors = {f"backbone.{name}": t for name, t in model.state_dict().items()}
    publish(tmp_path / "run", tensors, recipe, 1)
    tree, out = made_tree(tmp_path / "tree"), tmp_path / "look.html"
    unit, _ = derived.shape(recipe).multiple()
    words = ["--images", str(tree), "--pixels", str(2 * unit), "--shown", "3", "--out", str(out)]
    sizes = [*model.space.names]
    assert main(["look", str(tmp_path / "run"), *words]) == 0
    text = out.read_text()
    assert text.count("<img ") == 3 * (1 + len(sizes)) and "<th>attention</th>" not in text
    assert "Without a class token" in text and "of the class features" in text
    subnet, images = model.space.names[sizes[0]], torch.randn(2, 3, 2 * unit, 2 * unit)
    seen = see_map(model.eval(), subnet, images)
    plain = extract(model, subnet).network().eval()
    torch.testing.assert_close(seen.tokens, plain(images), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.tokens, seen.patches.mean(1), atol=1e-4, rtol=1e-4)

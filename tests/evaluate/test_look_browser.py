"""The page of `poa-ds look` in headless Chromium: the pixels it shows are what the sizes see."""

from pathlib import Path

import numpy as np
import pytest
import torch

from poa_ds.cli import main
from poa_ds.data.image.views import center_view, decode
from poa_ds.evaluate.look.seeing import brightness, colours, see
from poa_ds.export.load import load
from tests.evaluate.test_look import made_tree
from tests.support import chromium
from tests.support.teachers import make_teacher

pytestmark = pytest.mark.slow
SIZES, SIDE, GRID = ("32x2", "48x3"), 96, 12
# what its own policy lets no page do: a program looks at it
LOOK = """<script>const wrong = [];
addEventListener("error", e => wrong.push(e.message));
addEventListener("securitypolicyviolation", e => wrong.push(e.violatedDirective + e.blockedURI));
addEventListener("load", () => {
  const pictures = [];
  for (const img of document.querySelectorAll("table img")) {
    const c = document.createElement("canvas");
    [c.width, c.height] = [img.naturalWidth, img.naturalHeight];
    const brush = c.getContext("2d");
    brush.drawImage(img, 0, 0);
    pictures.push([c.width, [...brush.getImageData(0, 0, c.width, c.height).data]]);
  }
  const small = [...document.querySelectorAll(".t")];
  const said = {
    pictures: pictures.map(([side, data]) => side <= 12 ? data : [side]),
    titles: small.map(e => e.title),
    bare: small.filter(e => getComputedStyle(e).backgroundImage === "none").length,
    wide: document.documentElement.scrollWidth - innerWidth,
    asked: performance.getEntriesByType("resource").map(r => r.name),
    alerts: document.querySelectorAll("script").length, wrong,
    paper: getComputedStyle(document.body).backgroundColor,
  };
  const pre = document.createElement("pre");
  pre.id = "said";
  pre.textContent = JSON.stringify(said);
  document.body.replaceChildren(pre);
});</script>"""


def spoken(page: Path, *options: str) -> dict:
    """What the program says of the page in a window 400 pixels wide."""
    policy = "img-src data:;"
    text = page.read_text().replace(policy, f"{policy} script-src 'unsafe-inline';", 1)
    watched = page.with_suffix(".watched.html")
    watched.write_text(text.replace("<title>", f"{LOOK}<title>", 1))
    return chromium.said(watched, *options, "--window-size=400,900")


def seen_by(run: Path, tree: Path) -> list[np.ndarray]:
    """The maps that belong on the page, (B, GRID, GRID, 3) each: colours, attention, by size."""
    names = sorted(path.name for path in tree.iterdir())
    images = torch.stack([center_view(decode((tree / n).read_bytes()), SIDE, SIDE) for n in names])
    mean, std = (torch.tensor(x)[:, None, None] for x in MEAN_STD)
    seen = [see(load(run, size), (images / 255 - mean) / std) for size in SIZES]
    maps = []
    for one, painted in zip(seen, colours([s.patches for s in seen]), strict=True):
        grey = brightness(one.attention)[..., None].expand(-1, -1, 3)
        maps += [x.unflatten(1, (GRID, GRID)).numpy() for x in (painted, grey)]
    return maps


MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("look")
    run, tree = make_teacher(root / "run"), made_tree(root / "tree")
    words = ["--sizes", ",".join(SIZES), "--images", str(tree), "--pixels", str(SIDE)]
    assert main(["look", str(run), *words, "--shown", "3", "--out", str(root / "look.html")]) == 0
    return root / "look.html"


def test_every_map_has_the_pixels_of_its_size_and_image(page: Path) -> None:
    said = spoken(page)
    assert not said["wrong"] and not said["asked"] and said["alerts"] == 1
    assert not said["bare"] and "0.png" in said["titles"] and said["wide"] <= 0
    wanted = seen_by(page.parent / "run", page.parent / "tree")
    per_row = 1 + len(wanted)
    assert len(said["pictures"]) == 3 * per_row
    for number in range(3):
        first, *maps = said["pictures"][number * per_row : (number + 1) * per_row]
        assert first == [SIDE]
        for shown, map_ in zip(maps, wanted, strict=True):
            pixels = np.array(shown).reshape(GRID, GRID, 4)[..., :3]
            np.testing.assert_allclose(pixels, 255 * map_[number], atol=1.01)


def test_it_is_dark_where_the_system_is(page: Path) -> None:
    dark = spoken(page, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert dark["paper"] == "rgb(20, 22, 26)" and not dark["wrong"]

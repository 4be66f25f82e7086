"""The documents as a site: every page, no dead link, every command and key."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from poa_ds.cli import COMMANDS
from tests.test_architecture import ROOT

pytestmark = pytest.mark.slow


def built(checkout: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(checkout / "docs/build_site.py"), str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_site_is_whole_and_a_dead_link_ends_it(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    shutil.copytree(ROOT / "docs", checkout / "docs")
    for name in ("README.md", "BENCHMARKS.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, checkout)
    done = built(checkout, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    site = tmp_path / "out/site"
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    own = {p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")}
    assert {f"{page}.html" for page in map(Path.as_posix, own)} <= pages
    text = "".join((site / page).read_text() for page in pages)
    loaded = re.findall(r'<(?:script|img|iframe)[^>]*\bsrc="([^"]+)"', text)
    loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', text)
    assert loaded and not [place for place in loaded if "//" in place]
    commands = (site / "reference/commands.html").read_text()
    assert all(f"usage: poa-ds {name}" in commands for name in COMMANDS)
    keys = (site / "reference/recipe.html").read_text()
    assert "objective.intact_weight" in keys

    page = checkout / "docs/tutorial.md"
    page.write_text(page.read_text() + "\n[here](method.md#no-such-section)\n")
    done = built(checkout, tmp_path / "again")
    assert done.returncode != 0 and "no-such-section" in done.stderr

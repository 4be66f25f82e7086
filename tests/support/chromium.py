"""Headless Chromium, for tests of pages: skipped without one that runs, failed where it must be.

CHROMIUM names another program than the one in PATH; POA_CHROMIUM=required lets no test be skipped.
"""

import functools
import html
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

PATIENCE_SECONDS = 300.0
# root has no sandbox, and a container 64 MB of /dev/shm
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


def said(page: Path, *options: str) -> Any:
    """What a program in the page has left as JSON in its element `said`."""
    document = dumped(page.as_uri(), *options, folder=page.parent)
    found = re.search(r'<pre id="said">(.*?)</pre>', document, re.S)
    assert found, document[-2000:]
    return json.loads(html.unescape(found[1]))


def dumped(address: str, *options: str, folder: Path, seconds: int = 120) -> str:
    """The document behind the address, after so many seconds of the page's own clock.

    folder: for the browser's profile.
    """
    check()
    waits = f"--virtual-time-budget={1000 * seconds}"
    return _run(_program(), folder, *options, waits, "--dump-dom", address)


def pictured(page: Path, *options: str, folder: Path, seconds: int = 20) -> Path:
    """A picture of the page's window."""
    check()
    out, waits = folder / "page.png", f"--virtual-time-budget={1000 * seconds}"
    _run(_program(), folder, *options, waits, f"--screenshot={out}", page.as_uri())
    return out


def check() -> None:
    """Skip the test, or fail it, where there is none."""
    if reason := missing():
        (pytest.fail if os.environ.get("POA_CHROMIUM") == "required" else pytest.skip)(reason)


@functools.cache
def missing() -> str:
    """Why there is none that shows a file of a test; "" where there is."""
    if not (program := _program()):
        return "no Chromium: set CHROMIUM or install chromium"
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "page.html"
        page.write_text("<p>as it stands</p>")
        try:
            shown = _run(program, Path(name), "--dump-dom", page.as_uri())
        except (OSError, subprocess.SubprocessError) as error:
            return f"{program} does not run: {error}"
    return "" if "as it stands" in shown else f"{program} shows no file below {Path(name).parent}"


def _program() -> str:
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or ""


def _run(program: str, folder: Path, *words: str) -> str:
    """What it prints. Whatever it has started ends with it."""
    command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0) as process:
        try:
            shown, errors = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all of it has ended
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, shown, errors)
    return shown

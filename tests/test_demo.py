"""The demo as a newcomer runs it; minutes each."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from poa_ds.model.space import Subnet
from poa_ds.system.run_folder import RunFolder
from poa_ds.track import metrics_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
LARGEST = Subnet(96, 4)
TIME_LIMIT_SECONDS = 1200


def start(out: Path) -> subprocess.Popen[str]:
    words = ["demo", "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "poa_ds.cli", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(demo: subprocess.Popen[str]) -> str:
    text = demo.communicate(timeout=TIME_LIMIT_SECONDS)[0]
    assert demo.returncode == 0, text
    return text


def gains(out: Path) -> tuple[dict[Subnet, float], dict[Subnet, float]]:
    """Points of each size above its own random weights, and above raw pixels."""
    found, floors = metrics_file.knn_curves(metrics_file.read_rows(RunFolder(out).metrics))
    last = {size: points[-1][1] for size, points in found.items()}
    assert len(last) == 15
    return (
        {size: value - floors.random[size] for size, value in last.items()},
        {size: value - floors.pixels for size, value in last.items()},
    )


def test_an_interrupted_demo_leaves_no_process_continues_and_learns(tmp_path: Path):
    out = tmp_path / "run"
    demo = start(out)
    wait_for(out / "checkpoints" / "latest")
    demo.send_signal(signal.SIGINT)
    text = demo.communicate(timeout=120)[0]
    assert demo.returncode == 130, text
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(out) in str(p.info["cmdline"])]

    text = finish(start(out))
    assert "continues at step" in text and f"poa-ds mlflow {out}" in text
    page = RunFolder(out).report
    assert f"one page for the browser, with all of it     {page}" in text and page.is_file()
    over_random, over_pixels = gains(out)
    assert min(over_random.values()) >= 6, over_random
    assert over_random[LARGEST] >= 8, over_random
    assert min(over_pixels.values()) >= 25, over_pixels
    rows = metrics_file.read_rows(RunFolder(out).metrics)
    points = [(row["step"], name) for row in rows for name in metrics_file.values_of(row)]
    assert len(points) == len(set(points))
    assert "96x4, minus 32x2: " in text and "The same size trained alone" in text
    for name in ("curves.png", "heat_map.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200

    before = RunFolder(out).metrics.read_bytes()
    finish(start(out))
    assert RunFolder(out).metrics.read_bytes() == before


def test_a_second_demo_in_a_folder_is_refused_with_the_first_one_s_process(tmp_path: Path):
    out = tmp_path / "run"
    with start(out) as first:
        wait_for(out / "shards")
        second = start(out)
        said = second.communicate(timeout=120)[0]
        assert second.returncode == 1 and "Traceback" not in said
        assert f"{out} is in use by a demo, process {first.pid} on" in said
        wait_for(out / "shards" / "train" / "dataset.json")  # the first one goes on
        first.send_signal(signal.SIGINT)
        assert first.communicate(timeout=120)[0] and first.returncode == 130
    assert not (out / "demo.json").exists()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.2)

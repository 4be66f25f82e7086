"""timm:NAME from the hub's cache: real layout, real files, and a hub of our own on the loopback."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save

from poa_ds import cli
from poa_ds.checkpoint.deployed import load_teacher
from poa_ds.export import hub
from poa_ds.model.space import Subnet
from poa_ds.system.errors import UserError

NAME, COMMIT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "0123456789abcdef" * 2 + "01234567"
REPOSITORY = f"timm/{NAME}"
TINY = {"depth": 2, "img_size": 32}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, for every part of huggingface_hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME.split(".")[0], num_classes=0, **TINY).eval()


def fill(cache: Path, files: dict[str, bytes]) -> None:
    """What `hf download` leaves: blobs by their hash, links below the commit, a name for it."""
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    for part in ("refs", "blobs", f"snapshots/{COMMIT}"):
        (place / part).mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    for name, content in files.items():
        blob = place / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (place / "snapshots" / COMMIT / name).symlink_to(Path("../../blobs") / blob.name)


def imported(out: Path, *words: str) -> int:
    return cli.main(["import", f"timm:{NAME}", "--out", str(out), "--depths", "1,2", *words])


def is_the_network(run: Path) -> None:
    model, recipe, _ = load_teacher(run)
    assert [*recipe.augmentation.mean] == [0.5, 0.5, 0.5]  # augreg's, which no tensor tells
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted, found = network()(images), model(images, Subnet(192, 2))[:, 0]
    assert (wanted - found).abs().max() < 1e-5


def test_a_model_of_the_cache_is_imported_without_network(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, {"model.safetensors": save(network().state_dict()), "LICENSE": b"Of the weights."})
    [repository] = huggingface_hub.scan_cache_dir(cache).repos  # their own reader takes it for real
    assert repository.repo_id == REPOSITORY and repository.nb_files == 2
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")  # where nobody answers
    assert imported(tmp_path / "run") == 0
    is_the_network(tmp_path / "run")
    assert (tmp_path / "run" / "LICENSE.weights").read_text() == "Of the weights."
    assert "no licence text" not in capsys.readouterr().out


def test_what_is_not_in_the_cache_is_told_with_the_commands_that_fetch_it(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert f"hf download {REPOSITORY} model.safetensors" in told and "--download" in told
    assert str(cache) in told and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vit_smal_patch14_dinov2", "there is vit_small_patch14_dinov2.lvd142m"),
        ("vit_small_patch14_dinov2.imagenet", "there is vit_small_patch14_dinov2.lvd142m"),
        ("vit_tiny_patch16_dinov3_qkvb.none", "knows no such weights"),
    ],
)
def test_names_that_timm_lacks_are_told_with_near_ones(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        hub.model(f"timm:{name}")


def test_without_the_hubs_package_its_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = hub.model(f"timm:{NAME}")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        hub.weights(wanted, download=False)


@pytest.fixture
def files() -> dict[str, bytes]:
    return {
        "model.safetensors": save(network().state_dict()),
        "config.json": b"{}",
        "LICENSE.txt": b"Of the weights.",
        "pytorch_model.bin": b"the same, larger and worse",
    }


@pytest.fixture
def endpoint(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files, by the hub's protocol: a list with sizes, then HEAD and GET. What is asked for."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append(f"{self.command} {self.path.partition('?')[0]}")
            content = self.listed() if "/api/" in self.path else files.get(Path(self.path).name)
            self.send_response(404 if content is None else 200)
            content = content or b""
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(content if body else b"")

        def listed(self) -> bytes:
            there = [{"rfilename": name, "size": len(text)} for name, text in files.items()]
            about = {"id": REPOSITORY, "sha": COMMIT, "siblings": there, "private": False}
            return json.dumps(about | {"tags": [], "downloads": 0, "likes": 0}).encode()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    address = f"http://localhost:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_is_announced_with_its_size_and_comes_once(
    cache: Path,
    endpoint: list[str],
    files: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert imported(tmp_path / "run", "--download") == 0
    told = capsys.readouterr().err
    assert f"model.safetensors ({len(files['model.safetensors']) / 1e6:.1f} MB)" in told
    assert "apache-2.0" in told and str(cache) in told
    is_the_network(tmp_path / "run")
    fetched = {
        Path(line).name for line in endpoint if line.startswith("GET") and "/api/" not in line
    }
    assert fetched == {"model.safetensors", "config.json", "LICENSE.txt"}
    assert (tmp_path / "run" / "LICENSE.weights").read_text() == "Of the weights."
    endpoint.clear()
    assert imported(tmp_path / "again", "--download") == 0
    assert not endpoint  # it is here


def test_a_hub_that_is_not_there_or_lacks_the_weights_is_told(
    cache: Path, endpoint: list[str], files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = hub.model(f"timm:{NAME}")
    for name in hub.NAMES:
        del files[name]
    with pytest.raises(UserError, match=r"has none of model\.safetensors"):
        hub.weights(wanted, download=True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://localhost:9")
    with pytest.raises(UserError, match=r"cannot be fetched from http://localhost:9"):
        hub.weights(wanted, download=True)

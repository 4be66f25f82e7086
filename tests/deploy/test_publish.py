"""poa-ds publish: the folder, and the hub's own client against a small server of this machine."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from poa_ds import cli
from poa_ds.export.folder import reload
from poa_ds.system.errors import UsageError, UserError
from tests.export.test_folder import made

COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """What an upload of small files asks of the hub: a model, how to send, one commit."""

    files: dict[str, bytes]
    refuses: bool

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuses:
            self.answer({"error": "Invalid credentials"}, 401)
        elif self.path == "/api/repos/create":
            self.answer({"url": "the/address", "id": "me/small"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer({"files": [plain | {"path": name} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            self.answer({"commitUrl": "the/address", "commitOid": COMMIT, "success": True})
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        else:
            self.answer({}, 404)

    def do_GET(self) -> None:
        self.answer({"id": "me/small", "sha": COMMIT, "siblings": [], "tags": []})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.refuses = {}, False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://localhost:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def command(tmp_path: Path, *more: str, size: str = "32x2") -> list[str]:
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    return ["publish", run, "--size", size, "--out", out, *more]


def test_a_folder_is_checked_and_uploaded_only_when_asked(
    tmp_path: Path, hub: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    made("vit", tmp_path / "run")
    words = command(tmp_path, "--licence", "apache-2.0", "--half")
    assert cli.main(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "largest difference" in said and "nothing was uploaded" in said and not hub.files
    out = tmp_path / "out"
    head = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (head["license"], head["library_name"]) == ("apache-2.0", "transformers")
    assert not [p for p in out.iterdir() if str(tmp_path).encode() in p.read_bytes()]
    assert json.loads((out / "config.json").read_text())["poa_ds"]["source"] == "run, step 7"
    assert reload(out)(torch.zeros(1, 3, 64, 64)).shape == (1, 32)
    assert cli.main([*words, "--repo", "me/small"]) == 0, capsys.readouterr().err
    assert "uploaded: the/address" in capsys.readouterr().out
    assert hub.files == {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_hub_that_refuses_leaves_the_folder_and_says_what_to_do(
    tmp_path: Path, hub: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    made("resnet", tmp_path / "run")
    hub.refuses = True
    words = ["--licence", "mit", "--repo", "me/small"]
    assert cli.main(command(tmp_path, *words, size="64x1-1-1-1")) == UserError.exit_status
    said = capsys.readouterr().err
    assert "is written, but" in said and "`hf auth login`" in said and "hf_of_a_test" not in said
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    assert about["poa_ds"]["format"] == "timm"  # transformers has no such ResNet


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "needs a licence: --licence apache-2.0"),
        (["--licence", "My own: terms"], "identifiers are of the form"),
        (["--licence", "mit", "--repo", "small"], "is named OWNER/NAME"),
        (["--licence", "mit", "--private"], "--private is of --repo"),
        (["--licence", "mit", "--size", "all"], "are 4 sizes: name one"),
    ],
)
def test_wrong_use_is_told_before_anything_is_written(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made("vit", tmp_path / "run")
    assert cli.main(command(tmp_path, *words)) == UsageError.exit_status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

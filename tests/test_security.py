"""What docs/security.md claims of the code: its tests, modules and variables are there, and all."""

import re
from pathlib import Path

from poa_ds.data.image.opening import FORMATS, LARGEST, REDUCED_BYTES
from poa_ds.data.store import fetch
from poa_ds.data.store.remote import MANIFEST_BYTES
from poa_ds.run.remote import CARRIED
from poa_ds.track.mlflow_client import ENVIRONMENT
from tests.test_architecture import ROOT, imports, modules

TEXT = (ROOT / "docs" / "security.md").read_text()
# what opens connections, or starts programs that may
CONNECTING = {
    "fsspec",
    "http",
    "mlflow",
    "requests",
    "socket",
    "ssl",
    "urllib",
    "wandb",
    "webdataset",
    "huggingface_hub",
}
STARTING = {"subprocess", "pty"}


def users(libraries: set[str]) -> set[str]:
    """The files that import one of the libraries; parsing an address connects nothing."""
    return {
        str(path.relative_to(ROOT))
        for name, path in modules().items()
        if not name.startswith(("poa_kernels", "poa_ds.bench"))
        for imported in imports(name)
        if imported.split(".")[0] in libraries and imported != "urllib.parse"
    }


def named(text: str) -> set[str]:
    return set(re.findall(r"`((?:poa_ds|data_tools)/[\w/]+\.py)`", text))


def test_every_test_that_it_names_exists() -> None:
    there = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    wanted = set(re.findall(r"`(test_\w+)`", TEXT))
    assert len(wanted) > 10
    assert not [name for name in wanted if f"def {name}(" not in there]


def test_it_names_every_module_that_connects_or_starts_programs() -> None:
    _, _, leaving = TEXT.partition("## What leaves the machine")
    assert named(leaving) == users(CONNECTING) | users(STARTING) | {"data_tools/cifar10.py"}
    starting = leaving.partition("Other programs are started by")[2]
    assert named(starting) == users(STARTING)
    assert not [path for path in named(TEXT) if not (ROOT / path).is_file()]


def test_it_names_the_variables_that_are_carried_and_what_is_switched_off() -> None:
    carried = re.search(r"variables that begin with ([\w, ]+?), and lines", TEXT)
    assert carried is not None
    assert tuple(re.split(r", | or ", carried[1])) == CARRIED
    assert ENVIRONMENT["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_limits_of_data_are_those_of_the_code() -> None:
    assert f"{', '.join(FORMATS)}." in TEXT and len(FORMATS) == 7
    assert f"{LARGEST:,} pixels" in TEXT and f"may have {REDUCED_BYTES >> 30} GiB" in TEXT
    patience = fetch.PATIENCE * fetch.TIMEOUT_SECONDS
    assert f"within {fetch.TIMEOUT_SECONDS:.0f} seconds" in TEXT
    assert f"{fetch.SLOWEST // 1000} kB per second after {patience:.0f}" in TEXT
    assert f"itself {MANIFEST_BYTES >> 20} MiB" in TEXT


def test_the_documents_lead_to_it() -> None:
    assert "docs/security.md" in Path(ROOT / "README.md").read_text()

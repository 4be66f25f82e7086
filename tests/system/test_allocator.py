"""The allocator's setting: there before torch is, and the user's own where there is one."""

import subprocess
import sys

import pytest

from poa_ds.system.allocator import VARIABLES, prepare_allocator
from tests.run.test_training import ROOT, environment

AT_IMPORT = """
import os, sys
class Watch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print(os.environ.get("PYTORCH_CUDA_ALLOC_CONF"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Watch())
from {module} import main
main({words})
"""


def test_segments_grow_unless_the_user_has_said_something_else() -> None:
    variables: dict[str, str] = {}
    prepare_allocator(variables)
    assert variables == {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    for name in VARIABLES:
        variables = {name: "max_split_size_mb:128"}
        prepare_allocator(variables)
        assert variables == {name: "max_split_size_mb:128"}


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("poa_ds.train", ["--config", "ds_configs/photos.yaml", "output_dir=runs/none"]),
        ("poa_ds.cli", ["eval", "knn", "runs/none"]),
    ],
)
def test_it_is_there_when_torch_is_imported(module: str, words: list[str]) -> None:
    code = AT_IMPORT.format(module=module, words=words)
    variables = {k: v for k, v in environment().items() if k not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert done.stdout == "expandable_segments:True\n", done.stdout + done.stderr

"""The training program in a process that knows the toys: python -m ... OUT '{"words": [...]}'."""

import json
import sys
from pathlib import Path

from poa_ds.train import main
from tests.toys.table import register

if __name__ == "__main__":
    register()
    status = main(json.loads(sys.argv[2])["words"])
    (Path(sys.argv[1]) / "result.json").write_text(json.dumps({"status": status}))
    sys.exit(status)

"""One run that is disturbed again and again, and the undisturbed run it is compared with."""

import json
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load_file

from tests.distributed.programs.forks import Ranks, what_was_loaded

EVERY = 4  # steps between two checkpoints
STEPS = 96
ALIKE = 20  # steps whose losses agree after a change of ranks or stage
RECIPE = (
    *("--config", "ds_configs/photos.yaml", "tracking=none", "log_every=1", "report=false"),
    *("backbone.width={min: 32, max: 48, step: 16}", "backbone.depth={min: 2, max: 3, step: 1}"),
    *("backbone.names={}", "backbone.drop_path=0.2"),
    *("heads.prototypes=[32,48]", "heads.hidden=48", "heads.bottleneck=16"),
    *("batch={slots: 2, images_per_slot: 4}", f"schedule.epochs={STEPS // EVERY}"),
    *(f"schedule.steps_per_epoch={EVERY}", "checkpoint.every_epochs=1", "checkpoint.keep_last=4"),
    *("evaluation.queries=", "evaluation.every_epochs=0", "data.on_error=raise"),
)


@dataclass(frozen=True)
class Place:
    """On what a run trains."""

    ranks: int
    stage: int

    def words(self) -> list[str]:
        return ["--deepspeed_config", f"ds_configs/zero{self.stage}.json"]


@dataclass
class Story:
    """A run in `out`, its output in `logs`.

    changes: (the step it went on from, on what); the first one is its start.
    """

    out: Path
    logs: Path
    shards: Path
    place: Place
    random: Random = field(default_factory=lambda: Random(0))
    more: tuple[str, ...] = ()
    changes: list[tuple[int, Place]] = field(default_factory=list)
    ranks: Ranks | None = None
    launches: int = 0

    def start(self, *, loaded: Path | None = None) -> str:
        """Start the ranks, with the same command as before; what they say up to the first step."""
        words = [*RECIPE, *self.place.words(), f"data.train={self.shards}", *self.more]
        self.launches += 1
        log = self.logs / f"{self.out.name}{self.launches:02d}.log"
        words += [f"output_dir={self.out}"]
        self.ranks = Ranks(self.place.ranks, words, log, loaded=loaded)
        said = self.ranks.until(lambda said: re.search(r"^(step \d+|done):", said, re.MULTILINE))
        found = re.search(r"continues at step (\d+)", said)
        here = int(found[1]) if found else 0
        while self.changes and self.changes[-1][0] >= here:  # gone back behind a change
            self.changes.pop()
        if not self.changes or self.changes[-1][1] != self.place:
            self.changes.append((here, self.place))
        return said

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    def newest(self) -> Path:
        """The checkpoint that a run goes on from, if it is whole."""
        return max(self.checkpoints.glob("step*"))

    def go_on_elsewhere(self, place: Place) -> str:
        """Kill the run at its next regular checkpoint and go on on another place.

        What is loaded there is, bit for bit, what was saved.
        """
        here = int(self.newest().name[4:])
        self.ranks.until(lambda _: int(self.newest().name[4:]) >= here // EVERY * EVERY + EVERY)
        self.ranks.kill()
        saved = state_of(self.newest())
        self.place = place
        kept = self.logs / f"loaded{self.launches:02d}"
        kept.mkdir()
        said = self.start(loaded=kept)
        assert same_bits(what_was_loaded(kept), saved)
        return said

    def end(self) -> str:
        """Let the run come to its end; what it said."""
        said = self.ranks.until(lambda said: "done:" in said)
        assert self.ranks.wait() == [0] * self.place.ranks, said
        return self.ranks.said()


def state_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """`<parameter>|<key>` -> all its elements, put together from the files of a checkpoint."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for shard in manifest["shards"]:
        for label, array in load_file(checkpoint / shard["file"]).items():
            first = shard["pieces"][label.rpartition("|")[0]][0]
            parts.setdefault(label, []).append((first, array))
    return {
        label: np.concatenate([array for _, array in sorted(found, key=lambda part: part[0])])
        for label, found in parts.items()
    }


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, dict[str, float]]:
    """Step -> all losses, norms and sizes; every step once."""
    names = ("loss", "gradient", "size")
    found = [
        (row["step"], {name: x for name, x in row.items() if name.startswith(names)})
        for row in rows(out)
    ]
    steps = [step for step, values in found if values]
    assert steps == list(range(1, len(steps) + 1)), f"{out}: a step is lost or doubled: {steps}"
    return {step: values for step, values in found if values}


def undisturbed(story: Story, folder: Path) -> list[Path]:
    """Runs that make the same changes at the same steps, each going on from the one before.

    The last one comes to its end, every other one ALIKE steps past the change that it lacks.
    """
    ends = [step for step, _ in story.changes[1:]]
    outs = []
    for number, (step, place) in enumerate(story.changes):
        out = folder / f"undisturbed{number}"
        if outs:
            _go_on_from(outs[-1], step, out)
        run = replace(story, out=out, place=place, more=(), changes=[], launches=0)
        run.more = ("checkpoint.keep_last=100",)
        run.start()
        if number < len(ends):
            run.ranks.until_step(ends[number] + ALIKE + 1)
            run.ranks.kill()
        else:
            run.end()
        outs.append(out)
    return outs


def _go_on_from(before: Path, step: int, out: Path) -> None:
    """A run's folder as it was at that checkpoint."""
    name = f"step{step:08d}"
    shutil.copytree(before / "checkpoints" / name, out / "checkpoints" / name)
    (out / "checkpoints" / "latest").write_text(name)
    shutil.copy(before / "metrics.jsonl", out)

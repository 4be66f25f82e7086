"""One run through ten faults in random order; the table in docs/faults.md is made here.

POA_WRITE_DOCS=1 writes the table anew, POA_CHAOS_SEED=1 draws other steps, victims and bytes.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from poa_ds.run.exit_status import STOPPED
from poa_ds.system.run_folder import RunFolder
from tests.distributed.programs.story import (
    ALIKE,
    STEPS,
    Place,
    Story,
    losses,
    same_bits,
    state_of,
    undisturbed,
)
from tests.support.mlflow_runs import Server
from tests.support.shards import make_shards

pytestmark = pytest.mark.slow
DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
SEED = int(os.environ.get("POA_CHAOS_SEED", "0"))
# steps; two checkpoints are complete before the first fault
FIRST, APART = 13, 5
HEAD = """# Faults, and what a run makes of them

Written by `tests/distributed/test_chaos.py`: one run of the demo's recipe (smaller, two slots, a
checkpoint every 4 steps) meets these faults one after the other, in random order, at random steps.
Afterwards `metrics.jsonl` has every step once, with the losses of a run that nothing disturbed, and
all weights, moments and the teacher equal that run's bit for bit. RUN is `output_dir`, N a number.

| fault | the run | it says | then |
|---|---|---|---|
"""
TAIL = """
Where ranks or stage change, everything is bit for bit the same right after loading, the losses of
the next 20 steps agree to 1e-5 with a run that does not change (sums are taken in another order),
and the end is that of an undisturbed run that makes the same change at the same step.
"""
AGAIN = "the same command continues"
OTHER_RANKS = "one rank instead of two, or two instead of one"


def line(pattern: str, said: str) -> str:
    """The first line that fits, without what differs from run to run."""
    found = re.search(f"^.*{pattern}.*$", said, re.MULTILINE)
    assert found, f"nothing like {pattern}:\n{said[-3000:]}"
    text = re.sub(r"\S*/run(?=[/ :]|$)", "RUN", found[0])
    text = re.sub(r"\S*/(?=shard-\d)", "", text)
    text = re.sub(r"(rank \d+) on [^ :]+", r"\1", text)
    text = re.sub(r"(see its message).*", r"\1", text)  # then what it was doing, and what gloo says
    return re.sub(r"\d[\d,]*", "N", text)


def a_rank_is_killed(story: Story, step: int) -> tuple[str, str, str]:
    story.ranks.until_step(step)
    victim = story.random.randrange(story.place.ranks)
    story.ranks.send(signal.SIGKILL, [victim])
    statuses = story.ranks.wait()
    assert all(statuses), statuses
    said = story.ranks.said()
    story.start()
    return "ends", line("another rank ended", said), AGAIN


def all_are_killed(story: Story, step: int) -> tuple[str, str, str]:
    story.ranks.until_step(step)
    story.ranks.kill()
    return "ends", "", f"{AGAIN}: {line('continues at step', story.start())}"


def cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(1, len(content))])


def flip(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def a_checkpoint_is_damaged(damage: Callable[[Path, Random], None]) -> Callable:
    def act(story: Story, step: int) -> tuple[str, str, str]:
        story.ranks.until_step(step)
        story.ranks.kill()
        files = sorted(story.newest().iterdir())
        damage(story.random.choice(files), story.random)
        said = story.start()
        message = line("not used", said)  # which file it was depends on the seed
        return "was killed", re.sub(r"(stepN): .*", r"\1: ...", message), "the one before is used"

    return act


def more_or_fewer_ranks(story: Story, step: int) -> tuple[str, str, str]:
    story.ranks.until_step(step)
    said = story.go_on_elsewhere(Place(3 - story.place.ranks, story.place.stage))
    return "was killed", line("continues at step", said), "goes on"


def another_stage(story: Story, step: int) -> tuple[str, str, str]:
    story.ranks.until_step(step)
    said = story.go_on_elsewhere(Place(story.place.ranks, 3))
    return "was killed", line("continues at step", said), "goes on"


def the_tracker_is_stopped(story: Story, step: int) -> tuple[str, str, str]:
    """The part of the run from this step on has a tracker, which is stopped soon."""
    story.ranks.until_step(step)
    story.ranks.kill()
    with Server(story.logs / "server") as server:
        server.start()
        story.more = ("tracking=mlflow", f"mlflow.uri={server.uri}")
        story.start()
        story.ranks.until(lambda _: RunFolder(story.out).mlflow_ids.exists())
    story.more = ()
    story.ranks.until_step(step + 2)
    said = story.ranks.until(lambda said: "MLflow failed" in said)
    message = line("MLflow failed", said).split("):")[0]
    return "goes on", f"{message}): ...", "`poa-ds mlflow-sync` brings the rest there"


def a_shard_breaks(story: Story, step: int) -> tuple[str, str, str]:
    story.ranks.until_step(step)
    whole = {path: path.read_bytes() for path in story.shards.glob("*.tar")}
    for path, content in whole.items():
        with open(path, "r+b") as file:  # in place: it is never shorter
            file.write(bytes(byte ^ 16 for byte in content))
    statuses = story.ranks.wait()
    assert all(statuses), statuses
    said = story.ranks.said()
    for path, content in whole.items():
        path.write_bytes(content)
    story.start()
    message = re.sub("^.*error: ", "", line("sample.* damaged", said))  # from any rank
    return "ends", message, f"{AGAIN} once the shard is restored"


def one_rank_is_asked_to_stop(story: Story, step: int) -> tuple[str, str, str]:
    """As DeepSpeed's launcher does it: one rank hears of it first."""
    story.ranks.until_step(step)
    story.ranks.send(signal.SIGTERM, [story.random.randrange(story.place.ranks)])
    statuses = story.ranks.wait()
    said = story.ranks.said()
    assert set(statuses) == {STOPPED}, said
    saved = int(story.newest().name[4:])
    assert f"continues at step {saved} " in story.start()
    return f"saves and ends with {STOPPED}", line("stopped by", said), f"{AGAIN} there"


def the_disk_is_full(story: Story, step: int) -> tuple[str, str, str]:
    story.ranks.until_step(step)
    filler = story.out.with_name("filler")
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    said = story.ranks.until(lambda said: "could not be saved" in said)
    filler.unlink()
    newest = story.newest()
    story.ranks.until(lambda _: story.newest() != newest)
    warning = line("could not be saved", said)  # as the first file finds it, of whichever rank
    return "goes on", re.sub(r"saved: .*", "saved: ...", warning), "the next one is saved"


FAULTS: dict[str, Callable[[Story, int], tuple[str, str, str]]] = {
    "a rank is killed": a_rank_is_killed,
    "all ranks are killed": all_are_killed,
    "the newest checkpoint is cut": a_checkpoint_is_damaged(cut),
    "a bit of the newest checkpoint is flipped": a_checkpoint_is_damaged(flip),
    OTHER_RANKS: more_or_fewer_ranks,
    "another ZeRO stage (2 to 3)": another_stage,
    "all shards are damaged": a_shard_breaks,
    "SIGTERM to one rank": one_rank_is_asked_to_stop,
    "the disk is full": the_disk_is_full,
    "the MLflow server is stopped": the_tracker_is_stopped,
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    mounted = subprocess.run(words, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_after_ten_faults_a_run_is_where_it_would_have_been(disk: Path, tmp_path: Path) -> None:
    random = Random(SEED)
    shards = tmp_path / "shards"
    make_shards(shards, 60)
    order = random.sample(sorted(FAULTS), len(FAULTS))
    # so that there are two ranks when one is killed
    alone = order.index(OTHER_RANKS) < order.index("a rank is killed")
    logs = tmp_path / "logs"
    logs.mkdir()
    story = Story(disk / "run", logs, shards, Place(1 if alone else 2, 2))
    story.start()
    table = {}
    try:
        for number, name in enumerate(order):
            step = FIRST + APART * number + random.randrange(APART - 1)
            story.random = Random(f"{SEED} {name}")
            table[name] = FAULTS[name](story, step)
        story.end()
        compare(story, tmp_path)
    finally:
        story.ranks.kill()
    lines = [f"| {' | '.join((name, *table[name]))} |\n" for name in FAULTS]
    text = HEAD + "".join(lines) + TAIL
    # what stands behind it is made by tests/run/test_faults_document.py
    before, heading, rest = DOCUMENT.read_text().partition("\n## ")
    if os.environ.get("POA_WRITE_DOCS"):
        DOCUMENT.write_text(f"{text}{heading}{rest}")
        before = text
    assert before == text


def compare(story: Story, folder: Path) -> None:
    """The disturbed run with undisturbed ones."""
    outs = undisturbed(story, folder)
    for number, (step, _) in enumerate(story.changes[1:]):
        unchanged, changed = losses(outs[number]), losses(outs[number + 1])
        for at in range(step + 1, step + ALIKE + 1):
            a, b = ({k: x for k, x in of[at].items() if "loss" in k} for of in (changed, unchanged))
            assert a == pytest.approx(b, rel=1e-5), f"step {at}"
    assert len(losses(story.out)) == STEPS
    assert losses(story.out) == losses(outs[-1])
    last = outs[-1] / "checkpoints" / f"step{STEPS:08d}"
    assert same_bits(state_of(story.newest()), state_of(last))

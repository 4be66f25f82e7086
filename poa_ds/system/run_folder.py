"""The names of everything that a run keeps below its output_dir."""

from pathlib import Path

from poa_ds.system.errors import UserError

TEACHERS = "teacher"
LICENCE = "LICENSE.weights"  # beside a teacher, an exported model, in a run


class RunFolder:
    """Paths, whether there is anything or not; the module that writes each knows its content.

    Beside them stands the lock that every folder has while a program writes to it (lock.py).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "config.yaml"  # resolved
        self.deepspeed = path / "deepspeed.json"  # resolved
        self.derived = path / "derived.json"  # what the recipe amounts to: steps, rates, ...
        self.metrics = path / "metrics.jsonl"
        self.knn = path / "knn.jsonl"
        self.right = path / "knn_right.jsonl"
        self.evaluations = path / "evaluations.jsonl"  # all but k-NN
        self.features = path / "features"  # of sets of images, for evaluations
        self.images = path / "image_indexes"  # of images that lie in no shards
        self.linear = path / "linear"  # unfinished trainings of linear classifiers
        self.segmentation = path / "segmentation"  # the same of segmentation's heads
        self.finetune = path / "finetune"  # trainings of sizes with labels, each a run of its own
        self.detection = path / "detection"  # unfinished trainings of detectors
        self.latency = path / "latency.jsonl"
        self.events = path / "events.jsonl"
        self.bad_samples = path / "bad_samples.jsonl"
        self.report = path / "report.html"
        self.log = path / "training.log"  # what a training printed that Python has started
        self.ended = path / "ended.json"
        self.licence = path / LICENCE  # of the weights that the run began with
        self.checkpoints = path / "checkpoints"  # step00000300/, ..., latest
        self.teachers = path / TEACHERS  # step00000300/, ..., latest
        self.tensorboard = path / "tensorboard"
        self.wandb = path / "wandb"  # wandb chooses that name
        self.wandb_id = path / "wandb_id.txt"
        self.mlflow_ids = path / "mlflow.json"
        self.mlflow_store = path / "mlflow.db"  # where the recipe names no other
        self.mlflow_artifacts = path / "mlartifacts"

    @classmethod
    def around(cls, teacher: Path) -> "RunFolder":
        """The run of a teacher's folder; that folder itself where it stands alone."""
        return cls(teacher.parent.parent if teacher.parent.name == TEACHERS else teacher)

    def teacher(self, step: int) -> Path:
        return self.teachers / f"step{step:08d}"

    def bad_step(self, step: int, rank: int) -> Path:
        """What a rank's last step was, of too many in a row whose numbers were not finite."""
        return self.path / f"bad_step{step:08d}_rank{rank:05d}.json"


def named(text: str) -> tuple[Path, str]:
    """(folder, size) of FOLDER or FOLDER:SIZE; no size: empty. UserError: there is no folder."""
    place, size = Path(text), ""
    if not place.exists() and ":" in text:
        before, _, size = text.rpartition(":")
        place = Path(before)
    if not place.is_dir():
        raise UserError(f"there is no folder {place}")
    return place, size

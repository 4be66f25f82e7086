"""The online probe: against torch's own layer, loss and optimizer, and where it finds its rows."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from poa_ds.data.batch import Batch
from poa_ds.data.store.index import ShardFolder
from poa_ds.data.store.mixture import Mixture
from poa_ds.evaluate.features import features as knn_features
from poa_ds.methods.method import Method, method
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Online, Recipe
from poa_ds.run import online
from poa_ds.run.online import Probe
from poa_ds.run.step import Stepper
from poa_ds.system.errors import UsageError, UserError
from tests.distributed.programs.worker import CLASSES, IMAGES, made_batch, recipe_with
from tests.methods import test_sweet as sweet
from tests.methods.test_byol import byol_tree
from tests.support.shards import make_shards
from tests.toys.siamese import Siamese

ON = {"evaluation__online": {"labels": True}}
METHODS = {
    "poa": {"objective__centering": "softmax"},
    "single": {"objective__method": "single"},
    "dspnet": byol_tree(32, 64),
    "sweet": sweet.tree([0, 0, 0]),
}


def probe(classes: int = 5, channels: int = 12, *, seed: int = 0, **options: float) -> Probe:
    device = torch.device("cpu")
    return Probe(Online(**options), classes=classes, channels=channels, seed=seed, device=device)


def stream(steps: int, classes: int = 5, channels: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Batches of 24 rows around the centre of their class; every fifth has no label."""
    g = torch.Generator().manual_seed(1)
    centres, found = torch.randn(classes, channels, generator=g), []
    for _ in range(steps):
        labels = torch.randint(classes, (24,), generator=g)
        rows = centres[labels] + 0.3 * torch.randn(24, channels, generator=g)
        found.append((rows, labels.where(torch.arange(24) % 5 > 0, -1)))
    return found


def test_twenty_steps_are_those_of_a_linear_layer_autograd_and_sgd() -> None:
    own = probe(lr=0.1)
    layer = nn.Linear(12, 5)
    with torch.no_grad():
        layer.weight.copy_(own.weights[:, :-1])
        layer.bias.copy_(own.weights[:, -1])
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    for rows, labels in stream(20):
        scores = layer(rows)
        right = (scores.argmax(1) == labels).sum().item()
        sgd.zero_grad()
        F.cross_entropy(scores, labels, ignore_index=-1).backward()
        sgd.step()
        answered = own.learn(rows, labels)
        assert (answered.right.item(), answered.labelled.item()) == (right, 19)
        velocity = [sgd.state[p]["momentum_buffer"] for p in (layer.weight, layer.bias)]
        assert apart(own.weights, layer.weight, layer.bias) < 1e-6
        assert apart(own.velocity, *velocity) < 1e-6


def apart(whole: Tensor, weight: Tensor, bias: Tensor) -> float:
    return (whole - torch.cat((weight, bias[:, None]), dim=1)).abs().max().item()


def top1(batches: list[tuple[Tensor, Tensor]]) -> float:
    """Of the last half of the batches, each before it is learnt from."""
    own = probe(lr=0.1)
    answered = [own.learn(*batch) for batch in batches]
    right, labelled = (sum(t.item() for t in x[len(x) // 2 :]) for x in zip(*answered, strict=True))
    return right / labelled


def test_it_tells_classes_apart_and_with_labels_of_the_next_row_it_is_at_chance() -> None:
    batches = stream(100)
    assert top1(batches) > 0.95
    # 950 answers at 1 in 5: four standard errors are 5 points
    assert abs(top1([(rows, labels.roll(1)) for rows, labels in batches]) - 0.2) < 0.052


def test_what_it_answers_is_from_before_the_batch_that_it_learns_from() -> None:
    """One batch of random rows, again and again: no first answer knows its labels."""
    g = torch.Generator().manual_seed(3)
    rows, labels = torch.randn(24, 40, generator=g), torch.arange(24) % 8
    own = probe(8, 40, lr=1.0)
    first = (rows @ own.weights[:, :-1].T).argmax(1)
    counts = [own.learn(rows, labels).right.item() for _ in range(40)]
    assert counts[0] == (first == labels).sum().item() < 12 and counts[-1] == 24


def test_a_batch_without_labels_moves_nothing() -> None:
    own = probe()
    [(rows, labels)] = stream(1)
    own.learn(rows, labels)
    before = own.state()
    answered = own.learn(rows, torch.full_like(labels, -1))
    assert (answered.right.item(), answered.labelled.item()) == (0, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state().items())


def test_its_generator_is_its_own_and_follows_the_seed() -> None:
    before = torch.get_rng_state()
    own, same, other = probe(), probe(), probe(seed=1)
    own.learn(*stream(1)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(same.weights, probe().weights)
    assert not torch.equal(same.weights, other.weights)


class Reads(TorchDispatchMode):
    """Counts where a value is asked for, which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero")
        return function(*args, **(kwargs or {}))


def test_a_step_of_it_reads_no_value_that_a_device_may_still_compute() -> None:
    own, batches = probe(), stream(2)
    with Reads() as reads:
        answered = [own.learn(*batch) for batch in batches]
        assert reads.count == 0
        float(answered[0].right)
        assert reads.count == 1


def test_it_learns_in_every_nth_step() -> None:
    own = probe(every_steps=4)
    assert [step for step in range(12) if own.learns_in(step)] == [3, 7, 11]  # after 4, 8, 12


def targets_of(recipe: Recipe) -> tuple[Method, nn.Module, list[Batch], list]:
    """Of two slots, by a teacher that is not the student's copy any more."""
    own = method(recipe)
    networks = own.networks()
    with torch.no_grad():
        for p in networks.teacher.parameters():
            p.add_(0.02 * torch.sin(torch.arange(p.numel(), dtype=p.dtype)).view_as(p))
    batches = [made_batch(recipe, 9, slot) for slot in (1, 2)]
    values = derived.schedules(recipe, 10**6).at(9)
    found, _ = own.targets(lambda work: work(networks), batches, values, {})
    return own, networks, batches, found


@pytest.mark.parametrize("name", METHODS)
def test_rows_are_the_features_of_k_nn_of_the_intact_teacher(name: str) -> None:
    recipe = recipe_with(**METHODS[name])
    own, networks, batches, found = targets_of(recipe)
    features, labels = online.rows(own, batches, found)
    intact, places = derived.space(recipe).intact, range(2 * IMAGES)
    assert features.shape[1] == derived.shape(recipe).features(intact)
    assert not features.requires_grad
    with torch.no_grad():
        alone = [knn_features(networks.teacher.backbone, b.global_crops, intact) for b in batches]
    torch.testing.assert_close(features, torch.cat(alone), rtol=1e-5, atol=1e-5)
    # crop by crop
    wanted = [batch.labels[place % IMAGES].item() for batch in batches for place in places]
    assert labels.tolist() == wanted


def stepper(recipe: Recipe, saved: dict[str, Tensor] | None = None) -> Stepper:
    made = online.of_recipe(recipe, CLASSES, torch.device("cpu"))
    found = Stepper(recipe, None, method(recipe), made)
    if saved is not None:
        found.restore(saved)
    return found


def test_a_checkpoint_keeps_it_beside_the_methods_state() -> None:
    recipe = recipe_with(**ON)
    one = stepper(recipe)
    one.state = {"cls.0": torch.ones(3)}
    for _ in range(2):
        one.probe.learn(torch.randn(6, 64), torch.arange(6) % CLASSES)
    saved = one.saved()
    two = stepper(recipe, saved)
    assert two.state.keys() == {"cls.0"} and two.saved().keys() == saved.keys()
    assert all(torch.equal(two.saved()[name], tensor) for name, tensor in saved.items())
    # switched off it is given up, switched on it begins
    assert stepper(recipe_with(), saved).saved().keys() == {"cls.0"}
    fresh = stepper(recipe, {"cls.0": torch.ones(3)})
    assert torch.equal(fresh.probe.weights, stepper(recipe).probe.weights)


def test_other_classes_than_those_of_the_checkpoint_are_refused() -> None:
    saved = probe(4, 64).state()
    with pytest.raises(UserError, match=r"evaluation\.online\.labels.* of 4 classes.* has 3 now"):
        stepper(recipe_with(**ON), saved)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardFolder:
    return make_shards(tmp_path_factory.mktemp("shards") / "train", 6)


def without_labels(shards: ShardFolder) -> ShardFolder:
    index = shards.index.copy()
    index["label"] = -1
    return ShardFolder(shards.path, replace(shards.manifest, classes=()), index)


def test_classes_are_those_of_the_training_images(shards: ShardFolder) -> None:
    recipe = recipe_with(**ON)
    own = method(recipe)
    assert online.classes(recipe, shards, own) == 3
    assert online.classes(recipe, Mixture([shards, shards], [1, 1]), own) == 6
    assert online.classes(recipe_with(), without_labels(shards), own) == 0


def test_without_classes_or_a_teacher_to_read_it_is_refused(shards: ShardFolder) -> None:
    recipe = recipe_with(**ON)
    with pytest.raises(UsageError, match=r"evaluation\.online\.labels true: .*train are of 0 cla"):
        online.classes(recipe, without_labels(shards), method(recipe))
    with pytest.raises(UsageError, match=r"evaluation\.online\.labels true: .* no teacher"):
        online.classes(recipe, shards, Siamese(recipe))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "photos_seed"], "online.labels true: seed has no teacher"),
        (["objective.method=finetune"], "online.labels true: finetune has no teacher"),
        (["data.mode=stream", "data.images=9"], "online.labels true: data.mode stream"),
        (["evaluation.online.every_steps=0"], "evaluation.online.every_steps"),
        (["evaluation.online.lr=0"], "evaluation.online.lr"),
        (["evaluation.online.label=true"], "evaluation.online.labels"),
    ],
)
def test_a_recipe_that_cannot_have_one_is_refused_by_its_key(
    words: list[str], message: str
) -> None:
    name, rest = (words[1], words[2:]) if words[0] == "--config" else ("photos", words)
    with pytest.raises(UsageError, match=message.replace(".", r"\.")):
        load.recipe(Path(name), ["evaluation.online.labels=true", *rest])

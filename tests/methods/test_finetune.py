"""Fine-tuning against a plain network, torch's AdamW, and timm's mixup and loss."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from poa_ds.data.batch import Batch
from poa_ds.engine import optim
from poa_ds.export.extract import extract
from poa_ds.methods import mixing
from poa_ds.methods.finetune import Finetune
from poa_ds.methods.mixing import Mix
from poa_ds.model.vit.plain import Network
from poa_ds.recipe import derived, load
from poa_ds.recipe.tree import Finetune as Options
from poa_ds.recipe.tree import Recipe
from poa_ds.system.errors import UsageError
from tests.conftest import shared

CLASSES, IMAGES, DEPTH, DECAY = 5, 6, 3, 0.6


def recipe(**changes: dict) -> Recipe:
    tree = {
        "precision": "fp32",
        "objective": {"method": "finetune", "ibot": 0, "koleo": 0},
        "finetune": {"classes": CLASSES},
        "backbone": {
            "width": {"min": 32, "max": 32, "step": 16},
            "depth": {"min": DEPTH, "max": DEPTH, "step": 1},
            "patch_size": 8,
            "head_dim": 16,
            "layer_scale": 1.0,
            "drop_path": 0.0,
            "init": "torch",
        },
        "crops": {"global_size": 32, "local_count": 0},
        "masks": {"probability": 0},
        "batch": {"slots": 1, "images_per_slot": IMAGES},
        "optimizer": {"layer_decay": DECAY, "patch_embed_factor": 1.0, "decayed": "matrices"},
        "schedule": {"lr_scaling": "none", "weight_decay": 0.05, "weight_decay_end": 0.05},
    }
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return load.from_dict(tree)


def batch(step: int) -> Batch:
    g = torch.Generator().manual_seed(step)
    images = torch.randn(IMAGES, 3, 32, 32, generator=g)
    masks = torch.zeros(IMAGES, 16, dtype=torch.bool)
    empty, labels = torch.zeros(0), torch.randint(CLASSES, (IMAGES,), generator=g)
    return Batch(step, 0, images, empty, masks, empty, empty, labels=labels, views=1)


def timm_draw(mixup: Mixup, images: Tensor, seed: int) -> tuple[Mix, Tensor, Tensor]:
    """(what timm draws after that seed, in its order; its images; its targets)."""
    np.random.seed(seed)
    cut = np.random.rand(2)[1] < 0.5
    share = float(np.random.beta(1.0, 1.0) if cut else np.random.beta(0.8, 0.8))
    row, column = (np.random.randint(0, 32) for _ in range(2)) if cut else (0, 0)
    np.random.seed(seed)
    mixed, wanted = mixup(images.clone(), torch.arange(len(images)) % CLASSES)
    return Mix(share, bool(cut), (row + 0.5) / 32, (column + 0.5) / 32), mixed, wanted


def test_mixup_and_cutmix_are_timm_s() -> None:
    mixup = Mixup(0.8, 1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES)
    images, kinds = torch.randn(IMAGES, 3, 32, 32), set()
    logits = torch.randn(IMAGES, CLASSES)
    for seed in range(12):
        mix, wanted, targets = timm_draw(mixup, images, seed)
        kinds.add(mix.cut)
        got, share = mix.of(images)
        ours = mixing.targets(torch.arange(IMAGES) % CLASSES, CLASSES, share, 0.1)
        torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours, targets, atol=1e-6, rtol=0)
        loss = SoftTargetCrossEntropy()(logits, targets)
        torch.testing.assert_close(mixing.cross_entropy(logits, ours), loss)
    assert kinds == {True, False}


def test_draws_have_timm_s_distribution() -> None:
    rng, options = random.Random(0), Options(classes=CLASSES)
    found = [Mix.drawn(options, rng) for _ in range(4000)]
    # 4 standard deviations: of a share of one half, of the mean of Beta(.8, .8) and Beta(1, 1)
    assert abs(sum(mix.cut for mix in found) / 4000 - 0.5) < 0.032
    assert abs(np.mean([mix.share for mix in found]) - 0.5) < 0.02
    variance = np.var([mix.share for mix in found if not mix.cut])
    assert variance == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.1)
    alone = [Mix.drawn(replace(options, mixup=0.0), rng) for _ in range(20)]
    assert all(mix.cut for mix in alone)
    none = Mix.drawn(replace(options, mixup=0.0, cutmix=0.0), rng)
    assert (none.share, none.cut) == (1.0, False)


class Plain(nn.Module):
    """The extracted network and a classifier, and AdamW with a group for each layer's rate."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        own = source.backbone
        state = extract(own, own.space.intact)
        self.network = Network(**state.arguments)
        self.network.load_state_dict(dict(state))
        self.classifier = nn.Linear(32, CLASSES)
        self.classifier.load_state_dict(source.classifier.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.network(images))

    def groups(self, lr: float) -> Iterator[dict]:
        """Layer ids as in BEiT: tokens and patches 0, block k k + 1, norm and classifier D + 1."""
        for name, p in self.named_parameters():
            layer = DEPTH + 1
            if "blocks." in name:
                layer = int(name.split("blocks.")[1].split(".")[0]) + 1
            elif "embed" in name or "token" in name:
                layer = 0
            free = p.ndim == 1 or name.endswith((".bias", "pos_embed", "cls_token"))
            decay = 0.0 if free else 0.05
            yield {"params": [p], "lr": lr * DECAY ** (DEPTH + 1 - layer), "weight_decay": decay}


def steps(made: Recipe, lr: float, roll: int = 0) -> tuple[nn.Module, list[Tensor], dict]:
    """The student after 3 steps of the product, its losses, and the averages. roll: of labels."""
    method = Finetune(made)
    networks = method.networks()
    optimizer = optim.for_student(
        networks.student, depth=DEPTH, options=made.optimizer, average=networks.teacher
    )
    optimizer.ema_momentum = 0.7
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = lr, 0.05 if group["decays"] else 0.0
    losses = []
    for step in range(3):
        given = replace(batch(step), labels=batch(step).labels.roll(roll))
        loss, terms = method.loss(networks, given, method.mix(given), None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(terms["cross_entropy"])
    named = dict(networks.student.named_parameters())
    return networks.student, losses, {name: optimizer.state[p]["ema"] for name, p in named.items()}


def by_hand(made: Recipe, lr: float) -> tuple[Plain, list[Tensor], dict]:
    method = Finetune(made)
    plain = Plain(method.networks().student)
    average = {name: p.detach().clone() for name, p in plain.named_parameters()}
    adam, losses = torch.optim.AdamW(plain.groups(lr)), []
    for step in range(3):
        given = batch(step)
        images, share = method.mix(given).of(given.global_crops)
        smooth = torch.full((IMAGES, CLASSES), 0.1 / CLASSES)
        smooth[range(IMAGES), given.labels] += 0.9
        targets = share * smooth + (1 - share) * smooth.flip(0)
        loss = SoftTargetCrossEntropy()(plain(images), targets)
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
        for name, p in plain.named_parameters():
            average[name] = 0.7 * average[name] + 0.3 * p.detach()
    return plain, losses, average


def test_three_steps_are_those_of_a_plain_loop_average_included() -> None:
    """fp32 sums in another order; AdamW makes of a gradient of 1e-8 what it makes of any other."""
    made, lr = recipe(), 1e-3
    student, losses, averages = steps(made, lr)
    plain, wanted, average = by_hand(made, lr)
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    state = {n: t.clone() for n, t in extract(student.backbone, student.size).items()}
    own = student.backbone
    own.load_state_dict(
        {n.removeprefix("backbone."): t for n, t in averages.items() if "back" in n}
    )
    means = extract(own, student.size)
    for name, tensor in plain.network.named_parameters():
        if name.endswith("qkv.bias"):  # that of the keys has no gradient but rounding
            continue
        torch.testing.assert_close(state[name], tensor.detach(), atol=5e-6, rtol=1e-4)
        torch.testing.assert_close(means[name], average[f"network.{name}"], atol=5e-6, rtol=1e-4)
    torch.testing.assert_close(
        averages["classifier.weight"], average["classifier.weight"], atol=5e-6, rtol=1e-4
    )
    _, rolled, _ = steps(made, lr, roll=1)  # a planted mistake: other labels
    assert (torch.stack(rolled) - torch.stack(wanted)).abs().max() > 1e-2


def test_gradients_are_those_of_the_plain_network() -> None:
    made = recipe()
    method = Finetune(made)
    networks, given = method.networks(), batch(0)
    plain = Plain(networks.student)
    loss, _ = method.loss(networks, given, method.mix(given), None)
    loss.backward()
    images, share = method.mix(given).of(given.global_crops)
    targets = mixing.targets(given.labels, CLASSES, share, 0.1)
    SoftTargetCrossEntropy()(plain(images), targets).backward()
    ours, theirs = networks.student, plain
    pairs = [
        (ours.classifier.weight, theirs.classifier.weight),
        (ours.backbone.blocks[0].mlp.fc1.weight, theirs.network.blocks[0].mlp.fc1.weight),
        (ours.backbone.embed.cls_token, theirs.network.cls_token),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one.grad, other.grad.view_as(one), atol=1e-6, rtol=1e-4)


def test_rates_and_decay_are_those_of_the_published_code() -> None:
    """Of its active blocks; the others get the first rate there, and are not in this network."""
    found = json.loads(shared("golden/10_extras/case.json").read_text())["finetuning"]["vit"]
    depth, active = found["num_layers"], found["active_block_idx"]
    factors = {"layer_decay": found["layer_decay"], "patch_embed_factor": 1.0}
    compared = 0
    for name, (_, factor, decayed) in found["params"].items():
        name = name.removeprefix("feature_model.").replace(".linear.", ".").replace(".norm.", ".")
        part, _, rest = name.partition(".")
        if part == "blocks":
            number, _, rest = rest.partition(".")
            if int(number) not in active:
                continue
            name = f"backbone.blocks.{active.index(int(number))}.{rest}"
        elif part in ("cls_token", "pos_embed", "patch_embed", "mask_token"):
            name = f"backbone.embed.{name.replace('patch_embed.proj', 'patch')}"
        elif part == "norm":
            name = f"backbone.{name}"
        else:
            continue
        compared += 1
        assert optim.lr_factor(name, depth=depth, **factors) == pytest.approx(factor), name
        if part == "mask_token":  # nothing uses it
            continue
        shape = 1 if name.endswith(("bias", "gamma")) or "norm" in name else 2
        parameter = nn.Parameter(torch.zeros((1,) * shape))
        decays = optim.decays(name) and optim.is_matrix(name, parameter)
        assert decays == bool(decayed), name
    assert compared > 50


def test_stochastic_depth_drops_as_the_recipe_says() -> None:
    method = Finetune(recipe(backbone={"drop_path": 0.5}))
    networks, given = method.networks(), batch(0)
    drops = method.dropped(networks, given)
    assert drops is not None
    student = networks.student
    whole, dropped = student(given.global_crops), student(given.global_crops, drops)
    assert not torch.allclose(whole, dropped)
    assert torch.equal(dropped, student(given.global_crops, method.dropped(networks, given)))
    method = Finetune(recipe())
    assert method.dropped(method.networks(), given) is None


def test_the_rate_is_a_line_and_then_a_cosine() -> None:
    options = {"epochs": 10, "warmup_epochs": 1, "stretch": 1.0, "base_lr": 0.002, "min_lr": 1e-6}
    schedule = derived.schedules(recipe(schedule=options), 10 * IMAGES)
    for step in range(100):
        if step < 10:
            wanted = 0.002 * step / 9
        else:
            wanted = 1e-6 + (0.002 - 1e-6) * 0.5 * (1 + np.cos(np.pi * (step - 10) / 90))
        assert schedule.at(step).lr == pytest.approx(wanted)
        assert schedule.at(step).weight_decay == 0.05


def test_what_contradicts_a_recipe_is_said() -> None:
    wrong = {
        "at least": {"finetune": {"classes": 1}},
        "trains one size": {"backbone": {"width": {"min": 16, "max": 32, "step": 16}}},
        "crops.local_count 2": {"crops": {"local_count": 2, "local_size": 16}},
        "masks.probability": {"masks": {"probability": 0.5}},
        "data.mix": {"data": {"mix": {"a": 1.0}}},
        "learns without labels": {"objective": {"method": "poa"}},
    }
    for words, change in wrong.items():
        with pytest.raises(UsageError, match=words):
            recipe(**change)

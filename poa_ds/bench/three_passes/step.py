"""The plain training step around the three-pass network: losses, targets, optimizer, teacher.

Written as one would after reading the paper: score matrices of all heads are kept, Sinkhorn-Knopp
normalises them in turns, torch's AdamW has a parameter group per learning rate and decay. The
teacher follows with foreach operations.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poa_ds.bench.three_passes.network import Network
from poa_ds.data.batch import Batch
from poa_ds.data.store.order import DROP_PATH, keyed
from poa_ds.engine.optim import decays, lr_factor, part
from poa_ds.model.space import ElasticSpace, Subnet
from poa_ds.recipe.schedules import StepValues
from poa_ds.recipe.tree import Recipe


class ThreePasses:
    """Student, teacher and optimizer. bf16 is torch.autocast over fp32 weights."""

    def __init__(
        self,
        recipe: Recipe,
        space: ElasticSpace,
        weights: dict[str, Tensor],
        device: torch.device | str,
    ) -> None:
        self.recipe, self.space, self.device = recipe, space, torch.device(device)
        self.objective = recipe.objective
        self.student = Network(recipe).to(device)
        self.student.load_state_dict(weights)
        self.teacher = Network(recipe).to(device).requires_grad_(False)
        self.teacher.load_state_dict(weights)
        groups = _groups(self.student, recipe)
        options = recipe.optimizer
        betas = (options.beta1, options.beta2)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=options.eps, fused=True)

    def step(
        self, batches: Sequence[Batch], values: StepValues
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, gradient norms before clipping) of one whole step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(batches, values)
        norms = self._clip()
        for group in self.optimizer.param_groups:
            frozen = values.last_layer_factor if group["part"] == "last_layer" else 1.0
            group["lr"] = values.lr * group["factor"] * frozen
            group["weight_decay"] = values.weight_decay if group["decays"] else 0.0
        self.optimizer.step()
        with torch.no_grad():
            pair = [list(n.parameters()) for n in (self.teacher, self.student)]
            torch._foreach_lerp_(*pair, 1 - values.momentum)
        return loss, norms

    def backward(self, batches: Sequence[Batch], values: StepValues) -> Tensor:
        """Gradients of the mean over the slots; that mean."""
        targets = self._targets(batches, values)
        losses = []
        for batch, slot_targets in zip(batches, targets, strict=True):
            loss = self._loss(batch, slot_targets, values)
            (loss / len(batches)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _clip(self) -> dict[str, Tensor]:
        options, norms = self.recipe.optimizer, {}
        for name, module in self.student.named_children():
            limit = options.clip_backbone if name == "backbone" else options.clip_heads
            norms[name] = nn.utils.clip_grad_norm_(module.parameters(), limit or float("inf"))
        return norms

    def _autocast(self) -> torch.autocast:
        low = self.recipe.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=low)

    @torch.no_grad()
    def _targets(
        self, batches: Sequence[Batch], values: StepValues
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """[slot][head] -> (class targets (2, B, K), patch targets (M, K))."""
        scores_of = []
        for batch in batches:
            with self._autocast():
                tokens = self.teacher.one_size(batch.global_crops, self.space.intact)
                patches = tokens[:, 1:].flatten(0, 1)[_masked(batch, values)]
                scores_of.append(self.teacher.scores(tokens[:, 0], patches))
        found: list[list] = [[] for _ in batches]
        for of_head in zip(*scores_of, strict=True):
            cut = []
            for scores in zip(*of_head, strict=True):
                sizes = [len(s) for s in scores]
                whole = sinkhorn(
                    torch.cat(scores),
                    values.teacher_temperature,
                    self.recipe.objective.sinkhorn_iterations,
                )
                cut.append(whole.split(sizes))
            for targets, cls, patches in zip(found, *cut, strict=True):
                targets.append((cls.unflatten(0, (2, -1)), patches))
        return found

    def _loss(
        self, batch: Batch, targets: Sequence[tuple[Tensor, Tensor]], values: StepValues
    ) -> Tensor:
        objective, temperature = self.objective, self.objective.student_temperature
        subnets = (self.space.intact, self._draw(batch))
        drops = self._drops(batch, subnets)
        with self._autocast():
            (intact, intact_cls), (elastic, elastic_cls) = (
                self._student(batch, subnet, chosen, values)
                for subnet, chosen in zip(subnets, drops, strict=True)
            )
        terms = []
        for whole, small, target in zip(intact, elastic, targets, strict=True):
            a, b = (self._match(s, target, batch, values) for s in (whole, small))
            copied = sum(
                cross_entropy(x, F.softmax(y.detach() / temperature, dim=-1), temperature).mean()
                for x, y in zip(small[:2], whole[:2], strict=True)
                if len(x)
            )
            b = b + objective.imitation * copied
            terms.append(objective.intact_weight * a + (1 - objective.intact_weight) * b)
        spread = sum(koleo(half) for cls in (intact_cls, elastic_cls) for half in cls.chunk(2)) / 2
        return torch.stack(terms).mean() + objective.koleo * spread

    def _student(
        self, batch: Batch, subnet: Subnet, drops: Sequence, values: StepValues
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """Per head (global (2, B, K), local (L, B, K), patches (M, K)) scores; class tokens."""
        backbone = self.student.one_size
        masks = batch.masks if values.ibot_active else None
        tokens = backbone(batch.global_crops, subnet, masks, drops[0])
        cls, patches = tokens[:, 0], tokens[:, 1:].flatten(0, 1)[_masked(batch, values)]
        rows = cls
        if len(batch.local_crops):
            rows = torch.cat((cls, backbone(batch.local_crops, subnet, None, drops[1])[:, 0]))
        scores = [
            (
                cls_scores[: len(cls)].unflatten(0, (2, -1)),
                cls_scores[len(cls) :].unflatten(0, (-1, batch.size)),
                patch_scores,
            )
            for cls_scores, patch_scores in self.student.scores(rows, patches)
        ]
        return scores, cls

    def _match(
        self,
        scores: tuple[Tensor, Tensor, Tensor],
        targets: tuple[Tensor, Tensor],
        batch: Batch,
        values: StepValues,
    ) -> Tensor:
        """DINO over the pairs of different views, plus iBOT over the masked patches."""
        objective, temperature = self.objective, self.objective.student_temperature
        (whole, part, patches), (cls_targets, patch_targets) = scores, targets
        across = cross_entropy(whole, cls_targets.flip(0), temperature).mean(-1).sum()
        local = cross_entropy(part[:, None], cls_targets[None], temperature).mean(-1).sum()
        dino = (across + local) / (2 + 2 * len(part))
        weights = batch.mask_weights if values.ibot_active else batch.mask_weights[:0]
        masked = cross_entropy(patches, patch_targets, temperature) * weights
        return objective.dino * dino + objective.ibot * masked.sum() / (2 * batch.size)

    def _draw(self, batch: Batch) -> Subnet:
        recipe = self.recipe
        slots = recipe.batch.slots
        return self.space.draw(
            batch.step, batch.slot, seed=recipe.seed, slots=slots, policy=recipe.draws
        )

    def _drops(self, batch: Batch, subnets: tuple[Subnet, Subnet]) -> list:
        """The random choices that ours makes for this step and slot."""
        rng = keyed(DROP_PATH, self.recipe.seed, batch.step, batch.slot)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        crops = [c for c in (batch.global_crops, batch.local_crops) if len(c)]
        rate = self.recipe.backbone.drop_path
        return self.student.one_size.draw_drops(subnets, crops, rate, generator)


def _masked(batch: Batch, values: StepValues) -> Tensor:
    return batch.mask_indices if values.ibot_active else batch.mask_indices[:0]


def _groups(student: Network, recipe: Recipe) -> list[dict]:
    """A group per learning-rate factor, decay and part, as published."""
    options, groups = recipe.optimizer, {}
    for name, p in student.named_parameters():
        factor = lr_factor(
            name,
            depth=student.backbone.decay_depth,
            layer_decay=options.layer_decay,
            patch_embed_factor=options.patch_embed_factor,
        )
        groups.setdefault((factor, decays(name), part(name)), []).append(p)
    return [
        {"params": params, "factor": factor, "decays": decayed, "part": of}
        for (factor, decayed, of), params in groups.items()
    ]


def cross_entropy(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Row-wise; (..., K) each -> (...)."""
    return -(target * F.log_softmax(scores / temperature, dim=-1)).sum(-1)


def sinkhorn(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Balanced assignment, scores (R, K) -> (R, K), rows of mass one."""
    q = torch.exp(scores.float() / temperature)
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    return q


def koleo(x: Tensor) -> Tensor:
    """Mean negative log distance to the nearest neighbour of unit rows. x (B, C)."""
    x = F.normalize(x.float(), eps=1e-8, dim=-1)
    nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)
    return -torch.log(F.pairwise_distance(x, x[nearest], 2, 1e-8) + 1e-8).mean()

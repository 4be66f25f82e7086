"""Losses, Sinkhorn and centering against the published values and gradients."""

import numpy as np
import pytest
import torch

from poa_ds.methods import losses
from poa_ds.methods.losses import Scores, Targets
from tests.conftest import shared


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    arrays = {}
    for name in ("inputs", "outputs"):
        with np.load(shared(f"golden/04_losses/{name}.npz")) as z:
            arrays |= {key: torch.from_numpy(np.asarray(z[key])) for key in z.files}
    return arrays


def test_sinkhorn_is_the_published_one(golden: dict) -> None:
    for kind, temperature in (("dino", 0.04), ("dino", 0.07), ("ibot", 0.04), ("ibot", 0.07)):
        got = losses.sinkhorn(golden[f"{kind}/t_logits"], temperature, iterations=3)
        assert (got - golden[f"{kind}/sinkhorn/T{temperature}"]).abs().max() < 1e-6
    once = losses.sinkhorn(golden["dino/t_logits"], 0.07, iterations=1)
    assert (once - golden["dino/sinkhorn/T0.07/it1"]).abs().max() < 1e-6


def alternation(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    q = (scores.double() / temperature).exp()
    for _ in range(3):
        q = q / q.sum(0)
        q = q / q.sum(1, keepdim=True)
    return q


def test_sinkhorn_equals_the_plain_alternation_and_balances() -> None:
    torch.manual_seed(0)
    scores = torch.rand(40, 12) * 2 - 1
    assert (
        losses.sinkhorn(scores, 0.05, iterations=3) - alternation(scores, 0.05)
    ).abs().max() < 1e-6
    balanced = losses.sinkhorn(scores, 0.05, iterations=200).sum(0)
    assert (balanced - 40 / 12).abs().max() < 1e-3


def test_sinkhorn_in_parts_equals_one_matrix_and_survives_large_scores() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(17, 9) * 3, torch.randn(5, 4)
    parts = [(0, a[:6]), (0, a[6:7]), (1, b[:0]), (1, b), (0, a[7:])]
    biases = losses.sinkhorn_biases(lambda: parts, [9, 4], 0.04, iterations=3)
    for scores, bias in ((a, biases[0]), (b, biases[1])):
        assert torch.isfinite(bias).all()
        whole = alternation(scores, 0.04)
        assert (losses.targets(scores, 0.04, bias) - whole).abs().max() < 1e-5


def test_the_centre_shifts_the_scores_before_the_softmax(golden: dict) -> None:
    for step in range(3):
        for head in range(2):
            got = losses.targets(
                golden[f"dino/center/x{step}_{head}"],
                0.05,
                losses.centering_bias(golden[f"dino/center/used_center{step}_{head}"], 0.05),
            )
            assert (got - golden[f"dino/center/probs{step}_{head}"]).abs().max() < 1e-6


def test_cross_entropy_of_the_pairs_is_the_published_one(golden: dict) -> None:
    s = golden["dino/s_local"].double().requires_grad_()
    t = golden["dino/sinkhorn/T0.07"].double().view(2, 3, 12)
    loss = sum(losses.cross_entropy(view, crop, 0.1).mean() for view in s.chunk(4) for crop in t)
    loss.backward()
    assert abs(loss.item() - golden["dino/fwd_4x2/loss"].item()) < 1e-9
    assert (s.grad - golden["dino/fwd_4x2/ds"]).abs().max() < 1e-9


def test_match_counts_every_pair_of_different_views_once(golden: dict) -> None:
    """Against the published pair sums: locals 4 x 2, globals with the swapped teacher crop."""
    torch.manual_seed(1)
    t = torch.softmax(torch.randn(2, 3, 12).double() * 3, -1)
    s_global = torch.randn(2, 3, 12).double().requires_grad_()
    s_local = golden["dino/s_local"].double().view(4, 3, 12).requires_grad_()
    empty = torch.zeros(0, 12).double()
    dino, ibot = losses.match(
        Scores(s_global, s_local, empty), Targets(t, empty), torch.zeros(0).double(), 0.1
    )
    dino.backward()
    got = s_global.grad.clone(), s_local.grad.clone()
    s_global.grad = s_local.grad = None
    pairs = [(s_global[0], t[1]), (s_global[1], t[0])] + [(v, c) for v in s_local for c in t]
    slow = sum(losses.cross_entropy(a, b, 0.1).mean() for a, b in pairs) / len(pairs)
    slow.backward()
    assert ibot == 0 and abs(dino.item() - slow.item()) < 1e-12
    assert torch.allclose(got[0], s_global.grad) and torch.allclose(got[1], s_local.grad)


def test_ibot_is_the_published_one(golden: dict) -> None:
    s = golden["ibot/s_logits"].double().requires_grad_()
    t = golden["ibot/sinkhorn/T0.07"].double()
    crops = golden["ibot/mask"].shape[0]
    cls = torch.zeros(2, crops // 2, 12).double()
    none = torch.zeros(0, crops // 2, 12).double()
    weights = golden["ibot/masks_weight"].double()
    _, ibot = losses.match(Scores(cls, none, s), Targets(cls, t), weights, 0.1)
    ibot.backward()
    assert abs(ibot.item() - golden["ibot/fwd_masked_weights/loss"].item()) < 1e-9
    assert (s.grad - golden["ibot/fwd_masked_weights/ds"]).abs().max() < 1e-9


@pytest.mark.parametrize("case", ["a", "b", "c", "dup"])
def test_koleo_is_the_published_one(golden: dict, case: str) -> None:
    x = golden[f"koleo/{case}"].double().requires_grad_()
    loss = losses.koleo(x)
    loss.backward()
    assert abs(loss.item() - golden[f"koleo/{case}/loss"].item()) < 1e-6
    assert torch.isfinite(x.grad).all()
    if case != "dup":
        assert (x.grad - golden[f"koleo/{case}/dx"]).abs().max() < 1e-6


def test_koleo_of_one_row_is_zero() -> None:
    x = torch.randn(1, 4, requires_grad=True)
    losses.koleo(x).backward()
    assert x.grad.abs().max() == 0


SAME = torch.randn(1, 48, generator=torch.Generator().manual_seed(0))
DEGENERATE = {
    "one row": SAME,
    "two equal rows": SAME.repeat(2, 1),
    "all rows equal": SAME.repeat(50, 1),
    "two rows of zeros": torch.zeros(2, 48),
    "all zeros": torch.zeros(5, 48),
    "zeros and equal rows among others": torch.cat(
        [torch.zeros(2, 48), SAME, SAME, torch.eye(3, 48)]
    ),
    "no rows": torch.zeros(0, 48),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", DEGENERATE)
def test_koleo_of_degenerate_rows_is_finite_in_every_precision(
    case: str, dtype: torch.dtype
) -> None:
    x = DEGENERATE[case].to(dtype, copy=True).requires_grad_()
    loss = losses.koleo(x)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    assert x.grad.abs().max() < 10 if len(x) else True


def test_koleo_moves_only_the_rows_that_have_a_direction() -> None:
    """Against the slow loop over the rows that are neither empty nor doubled."""
    torch.manual_seed(0)
    rows = torch.cat([torch.randn(4, 6), torch.zeros(1, 6)]).double()
    rows = torch.cat([rows, rows[:1]]).requires_grad_()
    losses.koleo(rows).backward()
    got, rows.grad = rows.grad.clone(), None
    unit = [row / row.norm().clamp_min(1e-8) for row in rows.unbind()]
    total = 0.0
    for i in (1, 2, 3):
        nearest = max((j for j in range(6) if j != i), key=lambda j: unit[i] @ unit[j])
        total = total - (unit[i] - unit[nearest]).norm().log() / 6
    total.backward()
    assert (got - rows.grad)[[0, 1, 2, 3, 5]].abs().max() < 1e-6
    assert got[4].abs().max() == 0


def test_imitation_sends_no_gradient_to_the_intact_student() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    none, patches = torch.zeros(0, 3, 5), torch.zeros(0, 5)
    losses.imitate(Scores(a, none, patches), Scores(b, none, patches), 0.1).backward()
    assert b.grad is None
    slow = torch.zeros_like(a)
    for view in range(2):
        for row in range(3):
            p = torch.softmax(b[view, row] / 0.1, -1)
            slow[view, row] = (torch.softmax(a[view, row] / 0.1, -1) - p) / 0.1 / 6
    assert torch.allclose(a.grad, slow.detach(), atol=1e-6)

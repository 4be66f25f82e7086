"""SEED's short form against its definition, its limits and a case by hand, all in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poa_ds.methods import seed_loss

ROWS, QUEUE, DIM = 7, 50, 16


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """(the student's rows, the teacher's, the queue)."""
    torch.manual_seed(3)
    return unit(ROWS, DIM).requires_grad_(), unit(ROWS, DIM), unit(QUEUE, DIM)


def definition(z: Tensor, own: Tensor, queue: Tensor, t: float, s: float) -> Tensor:
    """Row by row, neighbour by neighbour."""
    rows = []
    for student, teacher in zip(z, own, strict=True):
        neighbours = [teacher, *queue]
        p = torch.softmax(torch.stack([teacher @ d for d in neighbours]) / t, 0)
        q = torch.log_softmax(torch.stack([student @ d for d in neighbours]) / s, 0)
        rows.append(-(p * q).sum())
    return torch.stack(rows)


def short(z: Tensor, own: Tensor, queue: Tensor, t: float, s: float) -> Tensor:
    mean = seed_loss.mean_neighbour(own, own, queue, t)
    return seed_loss.towards(z, own, mean, queue, s)


def gradient(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), z)[0]


@pytest.mark.parametrize("chunk", [seed_loss.CHUNK, 9 * ROWS, QUEUE])
def test_the_short_form_is_the_long_one_whole_and_in_parts(
    case: tuple, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_loss, "CHUNK", chunk)
    for t, s in ((0.01, 0.2), (0.3, 0.1)):
        wanted, got = definition(*case, t, s), short(*case, t, s)
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
        a, b = gradient(got, case[0]), gradient(wanted, case[0])
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_cold_teacher_makes_it_the_contrastive_loss_of_moco(case: tuple) -> None:
    z, own, queue = case
    scores = torch.cat(((z * own).sum(1, keepdim=True), z @ queue.T), 1) / 0.2
    moco = F.cross_entropy(scores, torch.zeros(ROWS, dtype=torch.long), reduction="none")
    torch.testing.assert_close(short(*case, 1e-3, 0.2), moco, rtol=0, atol=1e-12)
    assert (short(*case, 0.1, 0.2) - moco).abs().max() > 1e-3


def test_a_student_that_is_the_teacher_has_no_gradient_and_the_targets_entropy(
    case: tuple,
) -> None:
    _, own, queue = case
    z = own.clone().requires_grad_()
    loss = short(z, own, queue, 0.07, 0.07)
    assert gradient(loss, z).abs().max() < 1e-13
    p = seed_loss.probabilities(own, own, queue, 0.07)
    torch.testing.assert_close(loss, torch.special.entr(p).sum(1), rtol=0, atol=1e-13)


def test_one_neighbour_by_hand(case: tuple) -> None:
    z, own, queue = case
    queue, t, s = queue[:1], 0.1, 0.2
    c, d, e = own @ queue[0], z @ queue[0], (z * own).sum(1)
    wanted = F.softplus((d - e) / s) + (1 - torch.sigmoid((1 - c) / t)) * (e - d) / s
    torch.testing.assert_close(short(z, own, queue, t, s), wanted, rtol=0, atol=1e-13)


def test_gradients_of_the_chunked_sum_pass_gradcheck(
    case: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seed_loss, "CHUNK", 9 * ROWS)
    z, own, queue = case
    mean = seed_loss.mean_neighbour(own, own, queue, 0.05)
    assert torch.autograd.gradcheck(lambda x: seed_loss.towards(x, own, mean, queue, 0.2), (z,))


def divergence(own: Tensor, theirs: Tensor) -> Tensor:
    """Patch by patch: of the softmax of the cosines to all patches of the same crop."""
    found = []
    for a, b in zip(own, theirs, strict=True):
        for i in range(len(a)):
            q, p = (
                torch.log_softmax(F.cosine_similarity(x[i : i + 1], x) / 0.07, 0) for x in (a, b)
            )
            found.append((p.exp() * (p - q)).sum())
    return torch.stack(found).mean()


def test_patches_against_their_definition_and_two_by_hand() -> None:
    torch.manual_seed(1)
    own, theirs = torch.randn(2, 5, 4).double().requires_grad_(), torch.randn(2, 5, 9).double()
    wanted = divergence(own, theirs)
    got = seed_loss.patches_apart(own, seed_loss.alike(theirs).exp())
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    a, b = gradient(got, own), gradient(wanted, own)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)

    # two patches, whose cosines are 0.8 for the teacher and 0.6 for the student
    pair = [
        torch.tensor([[[1.0, 0.0], [c, (1 - c * c) ** 0.5]]], dtype=torch.float64)
        for c in (0.8, 0.6)
    ]
    p, q = torch.sigmoid(torch.tensor([0.2, 0.4], dtype=torch.float64) / 0.07)
    by_hand = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    got = seed_loss.patches_apart(pair[1], seed_loss.alike(pair[0]).exp())
    torch.testing.assert_close(got, by_hand, rtol=1e-12, atol=0)


def test_patches_that_are_the_teachers_have_no_divergence_and_no_gradient() -> None:
    torch.manual_seed(2)
    theirs = torch.randn(3, 6, 8, dtype=torch.float64)
    own = (2.5 * theirs).requires_grad_()  # lengths do not count
    loss = seed_loss.patches_apart(own, seed_loss.alike(theirs).exp())
    assert abs(loss.item()) < 1e-14 and gradient(loss, own).abs().max() < 1e-14

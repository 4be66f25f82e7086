"""The order of neighbours, their vote, and where the bank lies meanwhile."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from poa_ds.evaluate.neighbours import (
    Bank,
    Deal,
    answers,
    local_neighbours,
    rank_keys,
    read_keys,
    vote,
)

CPU = torch.device("cpu")


def test_keys_sort_like_similarity_and_then_by_number() -> None:
    values = torch.tensor([[0.5, -0.25, 0.5, -0.0, 0.0, 1.0, -1.0, 0.5 + 2**-24]])
    numbers = torch.arange(8)
    order = rank_keys(values, numbers).sort(descending=True).values
    similarity, best = read_keys(order)
    assert best.tolist() == [[5, 7, 0, 2, 3, 4, 1, 6]]
    assert torch.equal(similarity, values[0, best])
    large = torch.tensor([0, 2**31, 2**32 - 1])
    assert torch.equal(read_keys(rank_keys(values[:, :3], large))[1], large[None])


def test_equal_neighbours_are_taken_in_the_order_of_the_bank_however_it_is_cut() -> None:
    rows = F.normalize(torch.ones(40, 4), dim=1)
    whole = Bank([rows], [range(40)])
    shuffled = Bank([rows[:8]] * 5, [range(i, i + 8) for i in (16, 0, 32, 8, 24)])
    for bank in (whole, shuffled):
        assert (
            read_keys(local_neighbours([rows[:3]], bank, 5)[0])[1].tolist() == [[0, 1, 2, 3, 4]] * 3
        )


def test_a_bank_that_fits_is_sent_to_the_device_once_and_one_that_does_not_piece_by_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hollow, gpu = FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda")
    rows = [
        F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(i))) for i in (0, 1)
    ]
    bank = Bank(rows, [range(8), range(8, 16)])
    for free, places in ((10_000, {"cuda"}), (300, {"cpu"})):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        with hollow:
            sent = bank.near(gpu)
            assert {x.device.type for x in sent.features} == places
            [(blocks, numbers)] = sent.groups(gpu)
        assert {x.device.type for x in (*blocks, numbers)} == {"cuda"}
        assert all(a is b for a, b in zip(blocks, sent.features, strict=True)) == (
            places == {"cuda"}
        )


def test_a_part_of_a_bank_answers_as_a_bank_of_those_rows_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(20, 4, generator=generator), dim=1)
    labels, part = torch.arange(20) % 3, torch.arange(20) % 4 == 1
    part[0:4] = False  # a block without a row
    asked = F.normalize(torch.randn(6, 4, generator=generator), dim=1)
    given = {"query_labels": torch.arange(6) % 3, "classes": 3, "temperature": 0.07}
    given |= {"k": (1, 3, 50), "device": CPU, "ranked": True}
    bank = Bank([*rows.split(4)], [range(i, i + 4) for i in range(0, 20, 4)])
    found = answers(bank.only(part), [asked], Deal(6, 6), bank_labels=labels, **given)
    alone = Bank([rows[part]], [range(int(part.sum()))])
    wanted = answers(alone, [asked], Deal(6, 6), bank_labels=labels[part], **given)
    for k in given["k"]:
        assert torch.equal(found.right[k], wanted.right[k])
        assert torch.equal(found.first[k], wanted.first[k])


def test_the_bank_is_sent_before_the_first_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, near = [], Bank.near
    monkeypatch.setattr(
        Bank, "near", lambda self, device: asked.append(device) or near(self, device)
    )
    rows = F.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(0)))
    labels, deal = torch.arange(12) % 3, Deal(12, 4)
    found = answers(
        Bank([rows], [range(12)]),
        list(rows.split(4)),
        deal,
        bank_labels=labels,
        query_labels=labels,
        classes=3,
        temperature=0.07,
        k=(1,),
        device=CPU,
    ).percent()
    assert deal.rounds == 3 and asked == [CPU] and found == {1: 100.0}


def test_vote_weighs_by_softmax_over_all_neighbours() -> None:
    similarity, labels = torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[2, 0, 2]])
    e = [math.exp(s / 0.07) for s in (0.9, 0.8, 0.7)]
    scores = vote(similarity, labels, 3, 0.07, (1, 3))
    assert scores[1][0].tolist() == pytest.approx([0, 0, e[0] / sum(e)], abs=1e-6)
    assert scores[3][0].tolist() == pytest.approx(
        [e[1] / sum(e), 0, (e[0] + e[2]) / sum(e)], abs=1e-6
    )

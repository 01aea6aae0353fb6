from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.sampling.choice import Draw, choose_tokens
from xpeft_server.model.sampling.logprobs import RowLogprobs, row_logprobs
from xpeft_server.model.sampling.rule import SamplingRule


def one(logits: Tensor, chosen: int, count: int) -> RowLogprobs:
    (row,) = row_logprobs(logits[None], torch.tensor([chosen]), [count]).result()
    return row


def test_they_are_those_of_the_raw_logits_in_float64() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 5
    expected = torch.log_softmax(logits.double(), -1)
    row = one(logits, 7, 20)
    assert row.chosen == expected[7].item()
    assert row.ids.tolist() == expected.topk(20).indices.tolist()
    assert row.logprobs.tolist() == expected.topk(20).values.tolist()
    assert row.logprobs.dtype == np.float64


@pytest.mark.parametrize("vocabulary", [6, 5000])
def test_of_equal_ones_the_lowest_id_comes_first(vocabulary: int) -> None:
    logits = torch.full((vocabulary,), -1.0)
    logits[3], logits[1], logits[5] = 0.0, -0.0, 2.0
    assert one(logits, 0, 5).ids.tolist() == [5, 1, 3, 0, 2]


def test_negative_logits_are_in_order_too() -> None:
    logits = torch.tensor([-1e-40, -3.5, 1e-40, -2e30, -torch.inf, 5.5, -3.25])
    row = one(logits, 4, 7)
    assert row.ids.tolist() == [5, 2, 0, 6, 1, 3, 4]
    assert row.chosen == row.logprobs[-1] == -np.inf


def test_each_row_has_as_many_as_it_asks_for_and_no_more_than_there_are() -> None:
    rows = row_logprobs(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), [0, 1, 3, 9]).result()
    assert [row.ids.tolist() for row in rows] == [[], [0], [0, 1, 2], [0, 1, 2]]
    assert [len(row.logprobs) for row in rows] == [0, 1, 3, 3]
    assert {row.chosen for row in rows} == {rows[2].logprobs[0]}


def test_a_rule_does_not_change_what_is_told() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]]).repeat(3, 1)
    rule = SamplingRule(repetition_penalty=9, temperature=5, top_k=1, logprobs=2)
    found = choose_tokens(
        logits, [Draw(rule, 0, 0, np.array([2])), Draw(SamplingRule(), 0, 0), Draw(rule, 0, 0, np.array([1]))]
    )
    expected = torch.log_softmax(logits[0].double(), -1).tolist()
    assert found.ids.tolist() == [1, 2, 2]
    first, none, last = found.logprobs
    assert none is None
    assert first is not None
    assert last is not None
    assert (first.chosen, last.chosen) == (expected[1], expected[2])
    assert first.ids.tolist() == last.ids.tolist() == [2, 1]
    assert first.logprobs.tolist() == [expected[2], expected[1]]

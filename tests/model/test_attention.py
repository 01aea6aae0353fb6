"""packed_attention against one sequence, one head and one query at a time in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from xpeft_server.model.attention import PACKED_ATTENTION, packed_attention
from xpeft_server.model.batches.sequence_groups import SequenceGroups

GROUPS = SequenceGroups(((3, 1), (1, 9), (2, 5), (1, 8), (1, 40), (1, 33)))
LENGTHS = [length for count, length in GROUPS for _ in range(count)]
TOKENS = sum(count * length for count, length in GROUPS)
SIZE = 8


def states(heads: int, seed: int) -> Tensor:
    return torch.randn(1, heads, TOKENS, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def asking(*states: Tensor) -> list[Tensor]:
    """The same values, and gradients are asked for."""
    return [each.clone().requires_grad_() for each in states]


def attend(states: Sequence[Tensor], *, causal: bool = False, window: int | None = None) -> Tensor:
    """``[1, T, heads, d]``."""
    module: Any = SimpleNamespace(is_causal=causal)
    return packed_attention(module, *states, None, packed_groups=GROUPS, sliding_window=window)[0]


def expected(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, scale: float) -> Tensor:
    """``[1, T, heads, d]``."""
    out = torch.full((1, TOKENS, query.shape[1], SIZE), torch.nan, dtype=torch.float64)
    start = 0
    for length in LENGTHS:
        for head in range(query.shape[1]):
            shared = head * key.shape[1] // query.shape[1]
            for i in range(length):
                seen = [
                    start + j
                    for j in range(length)
                    if not (causal and j > i) and not (window is not None and abs(i - j) >= window)
                ]
                scores = key[0, shared, seen] @ query[0, head, start + i] * scale
                out[0, start + i, head] = scores.softmax(0) @ value[0, shared, seen]
        start += length
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 9, 40, 100])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_every_sequence_sees_itself_and_nobody_else(
    causal: bool, window: int | None, key_heads: int, scale: float | None
) -> None:
    query, key, value = states(4, 0), states(key_heads, 1), states(key_heads, 2)
    module: Any = SimpleNamespace(is_causal=causal)
    found, weights = packed_attention(
        module, query, key, value, None, packed_groups=GROUPS, scaling=scale, sliding_window=window, dropout=0.0
    )
    assert weights is None
    wanted = expected(
        query, key, value, causal=causal, window=window, scale=1 / math.sqrt(SIZE) if scale is None else scale
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 9, 40, 100])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_with_a_gradient_asked_for_the_values_are_the_same(
    causal: bool, window: int | None, key_heads: int, scale: float | None
) -> None:
    given = states(4, 0), states(key_heads, 1), states(key_heads, 2)
    module: Any = SimpleNamespace(is_causal=causal)
    found, without = (
        packed_attention(module, *each, None, packed_groups=GROUPS, scaling=scale, sliding_window=window)[0]
        for each in (asking(*given), given)
    )
    assert found.requires_grad
    torch.testing.assert_close(found.detach(), without, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 5, 40])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_gradients_are_those_of_one_query_at_a_time(causal: bool, window: int | None, key_heads: int) -> None:
    given = asking(states(4, 0), states(key_heads, 1), states(key_heads, 2))
    upstream = states(4, 3).transpose(1, 2)
    wanted = expected(*given, causal=causal, window=window, scale=1 / math.sqrt(SIZE))
    right = torch.autograd.grad(wanted, given, upstream)
    actual = torch.autograd.grad(attend(given, causal=causal, window=window), given, upstream)
    for found, reference in zip(actual, right, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("sequence", range(len(LENGTHS)))
def test_nothing_comes_from_other_sequences_or_padding_and_no_gradient_goes_there(
    causal: bool, window: int | None, sequence: int
) -> None:
    start = sum(LENGTHS[:sequence])
    own = torch.zeros(TOKENS, dtype=torch.bool)
    own[start : start + LENGTHS[sequence]] = True
    given = states(4, 0), states(2, 1), states(2, 2)
    poisoned = asking(*(torch.where(own[:, None], each, torch.nan) for each in given))
    clean = asking(*given)
    upstream = torch.where(own[:, None, None], states(4, 3).transpose(1, 2), 0)
    outputs = [attend(each, causal=causal, window=window) for each in (clean, poisoned)]
    assert torch.equal(outputs[0][:, own], outputs[1][:, own])
    gradients = [torch.autograd.grad(out, each, upstream) for out, each in zip(outputs, (clean, poisoned), strict=True)]
    for found, beside_poison in zip(*gradients, strict=True):
        assert torch.equal(found[:, :, own], beside_poison[:, :, own])
        assert found[:, :, own].isfinite().all()
        assert not found[:, :, ~own].any()


def test_a_module_that_does_not_say_whether_it_is_causal_is_not() -> None:
    query, key, value = states(2, 0), states(2, 1), states(2, 2)
    module: Any = SimpleNamespace()
    found, _ = packed_attention(module, query, key, value, None, packed_groups=GROUPS)
    wanted = expected(query, key, value, causal=False, window=None, scale=1 / math.sqrt(SIZE))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_transformers_knows_it_by_name() -> None:
    assert AttentionInterface()[PACKED_ATTENTION] is packed_attention

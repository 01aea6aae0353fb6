"""packed_attention against one sequence, one head and one query at a time in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from xpeft_server.model.attention import PACKED_ATTENTION, packed_attention

GROUPS: tuple[tuple[int, int], ...] = ((3, 1), (1, 9), (2, 5), (1, 40))
TOKENS = sum(count * length for count, length in GROUPS)
SIZE = 8


def states(heads: int, seed: int) -> Tensor:
    return torch.randn(1, heads, TOKENS, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def expected(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int | None, scale: float) -> Tensor:
    """``[1, T, heads, d]``."""
    out = torch.full((1, TOKENS, query.shape[1], SIZE), torch.nan, dtype=torch.float64)
    start = 0
    for length in [length for count, length in GROUPS for _ in range(count)]:
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


def test_a_module_that_does_not_say_whether_it_is_causal_is_not() -> None:
    query, key, value = states(2, 0), states(2, 1), states(2, 2)
    module: Any = SimpleNamespace()
    found, _ = packed_attention(module, query, key, value, None, packed_groups=GROUPS)
    wanted = expected(query, key, value, causal=False, window=None, scale=1 / math.sqrt(SIZE))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_transformers_knows_it_by_name() -> None:
    assert AttentionInterface()[PACKED_ATTENTION] is packed_attention

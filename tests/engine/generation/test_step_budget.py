from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_server.engine.generation.step_budget import share_budget


def shared(uncached: list[int], max_tokens: int, ahead: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """Who is in the step, by number, and with how many tokens."""
    running: list[Any] = [
        SimpleNamespace(number=number, tenant=str(number), uncached=each) for number, each in enumerate(uncached)
    ]
    parts = share_budget(running, max_tokens, lambda tenant: int(tenant) in ahead)
    return [(part.sequence.number, part.length) for part in parts]


@pytest.mark.parametrize(
    ("uncached", "max_tokens", "parts"),
    [
        ([], 8, []),
        ([1, 1, 1], 2, [(0, 1), (1, 1), (2, 1)]),
        ([5, 1, 9, 4], 10, [(1, 1), (0, 5), (2, 4)]),
        ([1, 1, 1, 1, 1, 1, 1, 6], 8, [*((number, 1) for number in range(7)), (7, 2)]),
    ],
    ids=["nobody", "decodes never wait", "prefills share the rest in turn", "prefills get a quarter at least"],
)
def test_the_budget_is_shared(uncached: list[int], max_tokens: int, parts: list[tuple[int, int]]) -> None:
    assert shared(uncached, max_tokens) == parts


def test_who_is_ahead_prefills_when_no_other_is_left_and_decodes_at_any_time() -> None:
    assert shared([9, 1, 4, 3], 10, ahead=(0, 1)) == [(1, 1), (2, 4), (3, 3), (0, 2)]


def test_a_part_asks_for_a_token_once_all_is_computed() -> None:
    running: list[Any] = [SimpleNamespace(tenant="t", uncached=each) for each in (3, 5)]
    assert [part.asks for part in share_budget(running, 6, lambda _: False)] == [True, False]

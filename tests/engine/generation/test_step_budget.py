from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_server.engine.generation.step_budget import share_budget


def shared(unread: list[int], max_tokens: int, ahead: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """Who is read, by number, and how many of its tokens."""
    running: list[Any] = [
        SimpleNamespace(number=number, tenant=str(number), unread=each) for number, each in enumerate(unread)
    ]
    parts = share_budget(running, max_tokens, lambda tenant: int(tenant) in ahead)
    return [(part.sequence.number, part.length) for part in parts]


@pytest.mark.parametrize(
    ("unread", "max_tokens", "parts"),
    [
        ([], 8, []),
        ([1, 1, 1], 2, [(0, 1), (1, 1), (2, 1)]),
        ([5, 1, 9, 4], 10, [(1, 1), (0, 5), (2, 4)]),
        ([1, 1, 1, 1, 1, 1, 1, 6], 8, [*((number, 1) for number in range(7)), (7, 2)]),
    ],
    ids=["nobody", "who writes never waits", "who reads shares the rest in turn", "prompts get a quarter at least"],
)
def test_the_budget_is_shared(unread: list[int], max_tokens: int, parts: list[tuple[int, int]]) -> None:
    assert shared(unread, max_tokens) == parts


def test_who_is_ahead_is_read_when_no_other_is_left_and_writes_at_any_time() -> None:
    assert shared([9, 1, 4, 3], 10, ahead=(0, 1)) == [(1, 1), (2, 4), (3, 3), (0, 2)]


def test_a_part_asks_for_a_token_once_all_is_read() -> None:
    running: list[Any] = [SimpleNamespace(tenant="t", unread=each) for each in (3, 5)]
    assert [part.asks for part in share_budget(running, 6, lambda _: False)] == [True, False]

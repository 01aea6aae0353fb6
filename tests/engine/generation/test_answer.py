from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_server.engine.errors import InternalError
from xpeft_server.engine.generation.advance import Advance
from xpeft_server.engine.generation.answer import Answer
from xpeft_server.engine.requests import Finished, Piece, Started

SEQUENCE: Any = SimpleNamespace(taken=12.0)


class HeldBack:
    """A text of which everything is clear at the end only."""

    def __init__(self, stops_at_the_end: bool) -> None:
        self.stopped = False
        self._stops = stops_at_the_end

    def push(self, token: int) -> str:
        return ""

    def end(self) -> str:
        self.stopped = self._stops
        return "rest"


def answer_with(text: Any) -> Answer:
    tokenizer: Any = None
    return Answer(tokenizer, text, profile_version="v", prompt_tokens=3, accepted=10.0)


@pytest.mark.parametrize(("stops", "reason"), [(True, "stop"), (False, "length")])
async def test_a_stop_text_that_shows_in_the_held_back_rest_is_the_reason(stops: bool, reason: str) -> None:
    answer = answer_with(HeldBack(stops))
    assert not answer.advance(Advance(SEQUENCE, 12.5, token=5))
    assert answer.advance(Advance(SEQUENCE, 13.0, token=6, finish_reason="length"))
    news = [await answer.next() for _ in range(3)]
    assert news[0] == Started("v", 3, 2.0)
    assert news[1] == Piece("rest")
    assert isinstance(news[2], Finished)
    assert (news[2].finish_reason, news[2].completion_tokens) == (reason, 2)
    assert answer.told_all


async def test_nothing_is_told_after_the_end() -> None:
    answer = answer_with(HeldBack(False))
    answer.advance(Advance(SEQUENCE, 12.5, finish_reason="stop"))
    answer.advance(Advance(SEQUENCE, 12.6, token=7))
    answer.fail(InternalError("late"))
    assert [type(await answer.next()) for _ in range(3)] == [Started, Piece, Finished]
    assert answer.told_all


async def test_an_error_is_raised_once_and_ends_the_answer() -> None:
    answer = answer_with(HeldBack(False))
    assert answer.advance(Advance(SEQUENCE, 12.5, counted=False, error=InternalError("first")))
    answer.fail(InternalError("second"))
    with pytest.raises(InternalError, match="first"):
        await answer.next()
    assert answer.told_all

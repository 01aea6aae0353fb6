"""What is told of an answer, and what is noted of its way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xpeft_server.engine.errors import InternalError
from xpeft_server.engine.generation.advance import Advance
from xpeft_server.engine.generation.answer import Answer
from xpeft_server.engine.requests import ChosenToken, Finished, Journey, LikelyToken, Piece, Stage, Started
from xpeft_server.model.sampling.logprobs import RowLogprobs

SEQUENCE: Any = SimpleNamespace(taken=12.0, filled=None, preemptions=0, reused=0)


class HeldBack:
    """A text of which everything is clear at the end only."""

    stopped = False

    def push(self, token: int) -> str:
        return ""

    def end(self) -> str:
        return "rest"


def answer_with(text: Any, journey: Journey | None = None) -> Answer:
    tokenizer: Any = None
    return Answer(
        tokenizer, text, profile_version="v", prompt_tokens=3, accepted=10.0, journey=journey or Journey("r-1")
    )


async def test_what_was_held_back_is_told_at_the_end() -> None:
    answer = answer_with(HeldBack())
    assert not answer.advance(Advance(SEQUENCE, 12.5, token=5))
    assert answer.advance(Advance(SEQUENCE, 13.0, token=6, finish_reason="length"))
    news = [await answer.next() for _ in range(3)]
    assert news[0] == Started("v", 2.0, prompt_tokens=3)
    assert news[1] == Piece("rest", generated=2)
    assert isinstance(news[2], Finished)
    assert (news[2].finish_reason, news[2].completion_tokens) == ("length", 2)
    assert answer.told_all


async def test_a_special_token_is_told_as_such() -> None:
    tokenizer: Any = SimpleNamespace(
        token_text=lambda token: (f"t{token}", b"t%d" % token), is_special=lambda token: token == 1
    )
    answer = Answer(tokenizer, HeldBack(), profile_version="v", prompt_tokens=3, accepted=10.0, journey=Journey())
    logprobs = RowLogprobs(-1.0, np.array([1]), np.array([-0.5]))
    for token in (1, 2):
        answer.advance(Advance(SEQUENCE, 12.5, token=token, logprobs=logprobs))
    _, *pieces = [await answer.next() for _ in range(3)]
    likeliest = LikelyToken(1, "t1", b"t1", -0.5)
    assert [piece.tokens for piece in pieces if isinstance(piece, Piece)] == [
        (ChosenToken(LikelyToken(token, f"t{token}", b"t%d" % token, -1.0), (likeliest,), special),)
        for token, special in ((1, True), (2, False))
    ]


async def test_nothing_is_told_after_the_end() -> None:
    answer = answer_with(HeldBack())
    answer.advance(Advance(SEQUENCE, 12.5, finish_reason="stop"))
    answer.advance(Advance(SEQUENCE, 12.6, token=7))
    answer.fail(InternalError("late"))
    assert [type(await answer.next()) for _ in range(3)] == [Started, Piece, Finished]
    assert answer.told_all


async def test_an_error_is_raised_once_and_ends_the_answer() -> None:
    answer = answer_with(HeldBack())
    assert answer.advance(Advance(SEQUENCE, 12.5, counted=False, error=InternalError("first")))
    answer.fail(InternalError("second"))
    with pytest.raises(InternalError, match="first"):
        await answer.next()
    assert answer.told_all


async def test_the_way_of_an_answer_has_a_stage_for_the_queue_the_first_token_and_the_rest() -> None:
    journey = Journey()
    answer = answer_with(HeldBack(), journey)
    sequence: Any = SimpleNamespace(taken=12.0, filled=(12.125, 12.25), preemptions=1, reused=2)
    answer.advance(Advance(sequence, 12.5, token=5))
    answer.advance(Advance(sequence, 12.75, token=6))
    answer.advance(Advance(sequence, 13.0, finish_reason="stop"))
    answer.leave(sequence)
    queue, *rest = journey.stages
    assert (queue.name, queue.ended) == ("queue", 12.0)
    assert rest == [
        Stage("fill", 12.125, 12.25, {"profiles": 1}),
        Stage("prefill", 12.0, 12.5, {"tokens": 1, "cached_tokens": 2}),
        Stage("decode", 12.5, 13.0, {"tokens": 3, "preemptions": 1}),
    ]
    assert (journey.profile_version, journey.prompt_tokens, journey.completion_tokens) == ("v", 3, 3)


@pytest.mark.parametrize(("taken", "names"), [(None, ["queue"]), (12.0, ["queue", "prefill"])])
async def test_what_an_answer_waited_for_is_noted_when_its_client_leaves(taken: float | None, names: list[str]) -> None:
    journey = Journey()
    answer = answer_with(HeldBack(), journey)
    began = journey.stages
    answer.leave(SimpleNamespace(taken=taken, filled=None, preemptions=0, reused=0))  # type: ignore[arg-type]
    assert [stage.name for stage in began] == names
    assert (journey.profile_version, journey.prompt_tokens, journey.completion_tokens) == (None, 0, 0)

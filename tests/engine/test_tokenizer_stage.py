"""Who is tokenised on which thread."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import ProfileKey
from xpeft_server.engine.requests import ChatMessage, ClassifyRequest, Prompt, TextInput
from xpeft_server.engine.tokenizer_stage import ROUND, SHORT, TokenizerStage, tokenizer_threads
from xpeft_server.model.tokens.tokenizing import TokenizedText


class NamesThread:
    """A tokenizer with a template; it remembers the thread that it worked on."""

    def __init__(self) -> None:
        self.chat = self
        self.thread = ""

    def render(self, messages: Any) -> str:
        return "".join(content for _, content in messages)

    def enough_of(self, text: str) -> str:
        return text

    def encode(self, texts: Any, *, truncate: bool = False) -> list[TokenizedText]:
        self.thread = threading.current_thread().name
        return [TokenizedText(np.zeros(1, np.int32), np.zeros(1, np.int32)) for _ in texts]

    encode_bare = encode


@pytest.mark.parametrize(
    ("prompt", "long"),
    [
        ("a" * SHORT, False),
        ("a" * (SHORT + 1), True),
        ((ChatMessage("user", "a" * (SHORT // 2)),), False),
        ((ChatMessage("user", "a" * SHORT),), True),
        ((ChatMessage("user", ""),) * 100, False),
        ((ChatMessage("user", ""),) * 2000, True),
    ],
)
async def test_what_takes_long_has_a_thread_of_its_own(prompt: Prompt, long: bool) -> None:
    tokenizer = NamesThread()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    await stage.encode_prompt("t", prompt)
    stage.close()
    assert tokenizer.thread.startswith("tokenizer-long") is long


class Slow(NamesThread):
    """Goes on when so many threads are in it."""

    def __init__(self, threads: int) -> None:
        super().__init__()
        self.together = threading.Barrier(threads, timeout=20)

    def encode(self, texts: Any, *, truncate: bool = False) -> list[TokenizedText]:
        self.together.wait()
        return super().encode(texts, truncate=truncate)


async def test_short_requests_are_tokenised_side_by_side() -> None:
    stage = TokenizerStage(Slow(3), threads=3)  # type: ignore[arg-type]
    texts = [ClassifyRequest(ProfileKey("t", "p"), (TextInput("a"),)) for _ in range(6)]
    answers = await asyncio.gather(*(stage.encode(each) for each in texts))
    assert [len(each) for each in answers] == [1] * 6
    stage.close()


def test_a_model_on_the_cores_has_one_thread_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert (tokenizer_threads(False), tokenizer_threads(True)) == (1, 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    assert tokenizer_threads(True) == 1


class Picky(NamesThread):
    """Refuses a text, and with it whatever it is tokenised with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []
        self.free = threading.Event()

    def encode(self, texts: Any, *, truncate: bool = False) -> list[TokenizedText]:
        assert self.free.wait(20)
        self.calls.append([text for text, _ in texts])
        if any(text == "bad" for text, _ in texts):
            raise ValueError("a bad text")
        return [TokenizedText(np.full(len(text), 7, np.int32), np.zeros(len(text), np.int32)) for text, _ in texts]


async def test_who_waits_is_tokenised_together_and_each_gets_its_own(until: Any) -> None:
    tokenizer = Picky()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    requests = [("first",), ("a", "bb"), ("ccc",)]
    asked = [
        asyncio.create_task(stage.encode(ClassifyRequest(ProfileKey("t", "p"), tuple(map(TextInput, texts)))))
        for texts in requests
    ]
    await until(lambda: stage._short[0].queued() == len(requests))
    tokenizer.free.set()
    answers = await asyncio.gather(*asked)
    assert tokenizer.calls == [["first"], ["a", "bb", "ccc"]]
    assert [[len(each) for each in answer] for answer in answers] == [[5], [1, 2], [3]]
    stage.close()


async def test_one_tenants_many_texts_leave_another_one_its_place(until: Any) -> None:
    tokenizer = Picky()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    texts = [("loud", "first"), *[("loud", "a" * SHORT)] * 20, ("quiet", "short")]
    asked = [
        asyncio.create_task(stage.encode(ClassifyRequest(ProfileKey(tenant, "p"), (TextInput(text),))))
        for tenant, text in texts
    ]
    await until(lambda: stage._short[0].queued() == len(texts))
    tokenizer.free.set()
    answers = await asyncio.gather(*asked)
    assert "short" in tokenizer.calls[1]
    assert max(sum(map(len, call)) for call in tokenizer.calls) <= ROUND
    assert [len(answer[0]) for answer in answers] == [len(text) for _, text in texts]
    stage.close()


async def test_a_request_of_many_texts_is_tokenised_a_round_at_a_time() -> None:
    tokenizer = Picky()
    tokenizer.free.set()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    texts = ["a" * size for size in (1, ROUND, ROUND // 2, ROUND // 2, ROUND // 2, 2 * ROUND, 3, 4)]
    answer = await stage.encode(ClassifyRequest(ProfileKey("t", "p"), tuple(map(TextInput, texts))))
    assert [len(each) for each in answer] == [len(text) for text in texts]
    assert [[len(text) for text in call] for call in tokenizer.calls] == [
        [1],
        [ROUND],
        [ROUND // 2, ROUND // 2],
        [ROUND // 2],
        [2 * ROUND],
        [3, 4],
    ]
    stage.close()


async def test_a_long_text_has_its_turn_between_those_of_a_request_of_very_many(until: Any) -> None:
    tokenizer = Picky()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    requests = [("loud", ["a" * ROUND] * 20), ("quiet", ["b" * ROUND])]
    asked = [
        asyncio.create_task(stage.encode(ClassifyRequest(ProfileKey(tenant, "p"), tuple(map(TextInput, texts)))))
        for tenant, texts in requests
    ]
    await until(lambda: stage._long.queued() == len(requests))
    tokenizer.free.set()
    answers = await asyncio.gather(*asked)
    assert [call[0][0] for call in tokenizer.calls[:3]] == ["a", "b", "a"]
    assert [[len(each) for each in answer] for answer in answers] == [[ROUND] * 20, [ROUND]]
    stage.close()


async def test_a_text_that_cannot_be_tokenised_fails_alone(until: Any) -> None:
    tokenizer = Picky()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    requests = [("first",), ("good",), ("bad",), ("fine", "too")]
    asked = [
        asyncio.create_task(stage.encode(ClassifyRequest(ProfileKey("t", "p"), tuple(map(TextInput, texts)))))
        for texts in requests
    ]
    await until(lambda: stage._short[0].queued() == len(requests))
    tokenizer.free.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[2], ValueError)
    told = [[len(each) for each in answer] for answer in answers if not isinstance(answer, BaseException)]
    assert told == [[5], [4], [4, 3]]
    stage.close()


class Panicking(Picky):
    """As Rust does, by an exception that is no Exception."""

    def encode(self, texts: Any, *, truncate: bool = False) -> list[TokenizedText]:
        if any(text == "bad" for text, _ in texts):
            raise PanicException("index out of bounds")
        return super().encode(texts, truncate=truncate)


class PanicException(BaseException): ...


async def test_a_panic_is_that_texts_error_and_the_next_one_is_tokenised() -> None:
    tokenizer = Panicking()
    tokenizer.free.set()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="index out of bounds"):
            await stage.encode(ClassifyRequest(ProfileKey("t", "p"), (TextInput("bad"),)))
        (good,) = await stage.encode(ClassifyRequest(ProfileKey("t", "p"), (TextInput("good"),)))
    assert len(good) == 4
    stage.close()

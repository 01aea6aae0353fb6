"""Tokenising beside the event loop, many requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from xpeft_server.model.tokenizing import TextTokenizer, TokenizedText

from .requests import ClassifyRequest

SHORT = 16_384
"""Characters; longer requests go to a lane of their own, so that nobody's short text waits behind a book."""


class _Waiting(NamedTuple):
    request: ClassifyRequest
    done: asyncio.Future[list[TokenizedText]]


class _Lane:
    """One thread; what comes while it works is its next round."""

    def __init__(self, name: str, encode: Callable[[ClassifyRequest], list[TokenizedText]]) -> None:
        self._encode = encode
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._waiting: list[_Waiting] = []
        self._busy = False

    def submit(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        if not self._busy:
            self._next_round(waiting.done.get_loop())

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        round_, self._waiting = self._waiting, []
        self._busy = bool(round_)
        if round_:
            self._thread.submit(self._work, loop, round_)

    def _work(self, loop: asyncio.AbstractEventLoop, round_: list[_Waiting]) -> None:
        results: list[list[TokenizedText] | Exception] = []
        for waiting in round_:
            try:
                results.append([] if waiting.done.done() else self._encode(waiting.request))
            except Exception as error:
                results.append(error)
        loop.call_soon_threadsafe(self._deliver, loop, round_, results)

    def _deliver(
        self, loop: asyncio.AbstractEventLoop, round_: list[_Waiting], results: list[list[TokenizedText] | Exception]
    ) -> None:
        for waiting, result in zip(round_, results, strict=True):
            if waiting.done.done():
                continue
            if isinstance(result, Exception):
                waiting.done.set_exception(result)
            else:
                waiting.done.set_result(result)
        self._next_round(loop)


class TokenizerStage:
    """Requests to token lists on two threads: one for short requests, one for long ones."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._short = _Lane("tokenizer", self._encode)
        self._long = _Lane("tokenizer-long", self._encode)

    async def encode(self, request: ClassifyRequest) -> list[TokenizedText]:
        """A token list a text, cut to the model's limit if the request says so."""
        done: asyncio.Future[list[TokenizedText]] = asyncio.get_running_loop().create_future()
        characters = sum(len(text) + len(pair or "") for text, pair in request.inputs)
        lane = self._short if characters <= SHORT else self._long
        lane.submit(_Waiting(request, done))
        return await done

    def close(self) -> None:
        self._short.close()
        self._long.close()

    def _encode(self, request: ClassifyRequest) -> list[TokenizedText]:
        return self._tokenizer.encode(request.inputs, truncate=request.truncate)

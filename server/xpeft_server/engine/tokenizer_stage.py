"""Tokenising beside the event loop, many requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from xpeft_server.model.chat_template import ChatRefused
from xpeft_server.model.tokenizing import TextTokenizer, TokenizedText

from .errors import InvalidInput, NoChatTemplate
from .requests import ClassifyRequest, Prompt

SHORT = 16_384
"""Characters; longer requests go to a lane of their own, so that nobody's short text waits behind a book."""

PER_MESSAGE = 16
"""Characters that a chat's template puts around a message, about: sixty thousand empty ones are no short text."""

Encode = Callable[[], list[TokenizedText]]


class _Waiting(NamedTuple):
    encode: Encode
    done: asyncio.Future[list[TokenizedText]]


class _Lane:
    """One thread; what comes while it works is its next round."""

    def __init__(self, name: str) -> None:
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
                results.append([] if waiting.done.done() else waiting.encode())
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
        self.tokenizer = tokenizer
        self._short = _Lane("tokenizer")
        self._long = _Lane("tokenizer-long")

    async def encode(self, request: ClassifyRequest) -> list[TokenizedText]:
        """A token list a text, cut to the model's limit if the request says so."""
        characters = sum(len(text) + len(pair or "") for text, pair in request.inputs)
        return await self._on_lane(characters, lambda: self.tokenizer.encode(request.inputs, truncate=request.truncate))

    async def encode_prompt(self, prompt: Prompt) -> list[int]:
        """A prompt's tokens, with the special ones that the tokenizer adds, or the template where it is a chat.

        Raises: InvalidInput, which names the token that the vocabulary has not; NoChatTemplate.
        """
        if isinstance(prompt, str):
            encoded = await self._on_lane(len(prompt), lambda: self.tokenizer.encode([(prompt, None)]))
            return [int(token) for token in encoded[0].ids]
        messages = [(each.role, each.content) for each in prompt if not isinstance(each, int)]
        if messages:
            characters = sum(PER_MESSAGE + len(content) for _, content in messages)
            encoded = await self._on_lane(characters, lambda: self._encode_chat(messages))
            return [int(token) for token in encoded[0].ids]
        ids = [each for each in prompt if isinstance(each, int)]
        for token in ids:
            if not 0 <= token < self.tokenizer.size:
                message = f"token {token} is not in the vocabulary, which has 0 to {self.tokenizer.size - 1}"
                raise InvalidInput(message, param="prompt")
        return ids

    def close(self) -> None:
        self._short.close()
        self._long.close()

    def _encode_chat(self, messages: list[tuple[str, str]]) -> list[TokenizedText]:
        if self.tokenizer.chat is None:
            raise NoChatTemplate(
                "the model's tokenizer has no template for chats; use /v1/completions", param="messages"
            )
        try:
            return self.tokenizer.encode_bare([self.tokenizer.chat.render(messages)])
        except ChatRefused as error:
            raise InvalidInput(f"the model's template refuses this chat: {error}", param="messages") from None

    async def _on_lane(self, characters: int, encode: Encode) -> list[TokenizedText]:
        done: asyncio.Future[list[TokenizedText]] = asyncio.get_running_loop().create_future()
        (self._short if characters <= SHORT else self._long).submit(_Waiting(encode, done))
        return await done

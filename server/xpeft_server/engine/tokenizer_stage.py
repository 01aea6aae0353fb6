"""Tokenising in threads, many requests at a time."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np

from xpeft_server.model.tokens.chat_template import ChatRefused
from xpeft_server.model.tokens.tokenizing import TextTokenizer, TokenizedText

from .errors import InvalidInput, NoChatTemplate
from .requests import ClassifyRequest, Prompt

SHORT = 16_384
"""Characters; longer requests use a lane of their own, so that no short text waits behind a book."""

ROUND = 65_536
"""Most characters of a lane's round, for which later requests wait; a longer request has a round of its own."""

PER_MESSAGE = 16
"""About the characters that a chat template adds to a message, so that sixty thousand empty ones are no short text."""

Inputs = Sequence[tuple[str, str | None]]
Encode = Callable[[Inputs], list[TokenizedText]]
Result = list[TokenizedText] | Exception


class _Waiting(NamedTuple):
    """A request that waits. Neighbours with the same ``encode`` share one call of it."""

    tenant: str
    characters: int
    encode: Encode
    inputs: Inputs
    done: asyncio.Future[list[TokenizedText]]


class _Lane:
    """One thread that works in rounds; each takes waiting requests, one of each tenant in turn."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        # In order: the tenant whose turn is next, and each tenant's oldest request, come first.
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._count = 0
        self._busy = False

    def queued(self) -> int:
        """Waiting requests, plus one if a round is running."""
        return self._count + self._busy

    def submit(self, waiting: _Waiting) -> None:
        self._waiting.setdefault(waiting.tenant, deque()).append(waiting)
        self._count += 1
        if not self._busy:
            self._next_round(waiting.done.get_loop())

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _next_round(self, loop: asyncio.AbstractEventLoop) -> None:
        round_ = self._taken()
        self._busy = bool(round_)
        if round_:
            self._thread.submit(self._work, loop, round_)

    def _taken(self) -> list[_Waiting]:
        """The next round, without cancelled requests."""
        taken: list[_Waiting] = []
        left = ROUND
        while self._waiting:
            tenant, line = self._waiting.popitem(last=False)
            if taken and line[0].characters > left:
                self._waiting[tenant] = line
                self._waiting.move_to_end(tenant, last=False)
                break
            first = line.popleft()
            self._count -= 1
            if line:
                self._waiting[tenant] = line
            if not first.done.done():
                taken.append(first)
                left -= first.characters
        return taken

    def _work(self, loop: asyncio.AbstractEventLoop, round_: list[_Waiting]) -> None:
        wanted = [waiting for waiting in round_ if not waiting.done.done()]
        results: list[Result] = []
        for _, some in groupby(wanted, key=lambda waiting: waiting.encode):
            results += _encoded(list(some))
        loop.call_soon_threadsafe(self._deliver, loop, wanted, results)

    def _deliver(self, loop: asyncio.AbstractEventLoop, round_: list[_Waiting], results: list[Result]) -> None:
        for waiting, result in zip(round_, results, strict=True):
            if waiting.done.done():
                continue
            if isinstance(result, Exception):
                waiting.done.set_exception(result)
            else:
                waiting.done.set_result(result)
        self._next_round(loop)


def _encoded(some: list[_Waiting]) -> list[Result]:
    """Encode all by one call, because every return from the tokenizer takes the interpreter's lock again.

    If that fails each request is encoded by itself, so that only the faulty one fails. A panic of the tokenizer is a
    BaseException.
    """
    try:
        encoded = iter(some[0].encode([each for waiting in some for each in waiting.inputs]))
        return [list(islice(encoded, len(waiting.inputs))) for waiting in some]
    except BaseException as error:
        if len(some) > 1:
            return [result for waiting in some for result in _encoded([waiting])]
        return [error if isinstance(error, Exception) else RuntimeError(f"the tokenizer failed: {error!r}")]


class TokenizerStage:
    """Turns requests into token lists, on threads of its own: some for short requests, one for long ones.

    Args:
        threads: for short requests; the tokenizer releases the interpreter's lock while it works.
    """

    def __init__(self, tokenizer: TextTokenizer, *, threads: int = 1) -> None:
        self.tokenizer = tokenizer
        self._short = [_Lane("tokenizer") for _ in range(threads)]
        self._long = _Lane("tokenizer-long")

    async def encode(self, request: ClassifyRequest) -> list[TokenizedText]:
        """A token list for each text, cut to the model's limit if the request says so.

        Only the beginning of a text far beyond the limit is read. Many texts are encoded in portions, so that other
        tenants have their turns between them. If both sides of a pair are far beyond the limit, the odd token goes to
        the side with more tokens in what was read.
        """
        encode = self._encode_cut if request.truncate else self._encode
        encoded: list[TokenizedText] = []
        for some in _portions(request.inputs):
            encoded += await self._on_lane(request.profile.tenant, _characters(some), encode, some)
        return encoded

    async def encode_prompt(self, tenant: str, prompt: Prompt) -> TokenizedText:
        """A prompt's tokens, with the special tokens that the tokenizer adds, or for a chat its template.

        Raises: InvalidInput, naming a token that is not in the vocabulary; NoChatTemplate.
        """
        if isinstance(prompt, str):
            encoded = await self._on_lane(tenant, len(prompt), self._encode, [(prompt, None)])
            return encoded[0]
        messages = [(each.role, each.content) for each in prompt if not isinstance(each, int)]
        if messages:
            characters = sum(PER_MESSAGE + len(content) for _, content in messages)
            encoded = await self._on_lane(tenant, characters, lambda _: self._encode_chat(messages), [("", None)])
            return encoded[0]
        ids = [each for each in prompt if isinstance(each, int)]
        for token in ids:
            if not 0 <= token < self.tokenizer.size:
                message = f"token {token} is not in the vocabulary, which has 0 to {self.tokenizer.size - 1}"
                raise InvalidInput(message, param="prompt")
        return TokenizedText(np.array(ids, np.int32), np.zeros(len(ids), np.int32))

    def close(self) -> None:
        for lane in (*self._short, self._long):
            lane.close()

    def _encode(self, inputs: Inputs, *, truncate: bool = False) -> list[TokenizedText]:
        enough = self.tokenizer.enough_of
        read = [(enough(text), None if pair is None else enough(pair)) for text, pair in inputs]
        encoded = self.tokenizer.encode(read, truncate=truncate)
        return [_told(*each) for each in zip(encoded, read, inputs, strict=True)]

    def _encode_cut(self, inputs: Inputs) -> list[TokenizedText]:
        return self._encode(inputs, truncate=True)

    def _encode_chat(self, messages: list[tuple[str, str]]) -> list[TokenizedText]:
        if self.tokenizer.chat is None:
            raise NoChatTemplate(
                "the model's tokenizer has no template for chats that works; ask /v1/completions", param="messages"
            )
        try:
            chat = self.tokenizer.chat.render(messages)
        except ChatRefused as error:
            raise InvalidInput(f"the model's template refuses this chat: {error}", param="messages") from None
        read = self.tokenizer.enough_of(chat)
        return [_told(self.tokenizer.encode_bare([read])[0], read, chat)]

    async def _on_lane(self, tenant: str, characters: int, encode: Encode, inputs: Inputs) -> list[TokenizedText]:
        done: asyncio.Future[list[TokenizedText]] = asyncio.get_running_loop().create_future()
        lane = min(self._short, key=_Lane.queued) if characters <= SHORT else self._long
        lane.submit(_Waiting(tenant, characters, encode, inputs, done))
        return await done


def _portions(inputs: Inputs) -> Iterator[Inputs]:
    """Runs of at most a round's characters, at least one text each.

    Freeing the tokenizer's results of one call blocks the interpreter, too: smaller calls block it for less time.
    """
    begin = characters = 0
    for place, each in enumerate(inputs):
        size = _characters([each])
        if place > begin and characters + size > ROUND:
            yield inputs[begin:place]
            begin, characters = place, 0
        characters += size
    yield inputs[begin:]


def _characters(inputs: Inputs) -> int:
    return sum(len(text) + len(pair or "") for text, pair in inputs)


def _told(encoded: TokenizedText, read: object, asked: object) -> TokenizedText:
    return encoded if read == asked else replace(encoded, is_whole=False)


def tokenizer_threads(device_works_by_itself: bool) -> int:
    """Threads for short requests: with a GPU a quarter of the cores, four at most; with a model on the CPU one."""
    return max(1, min(4, len(os.sched_getaffinity(0)) // 4)) if device_works_by_itself else 1

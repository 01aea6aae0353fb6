"""The answers to the prompts of one request as one stream of chunks, in the shape of /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from xpeft_server.engine.requests import Echo, Finished, FinishReason, News, Piece, Started

from ..event_stream import Document, Events, Opening
from ..generation.logprobs import LegacyLines, LegacyLogprobs
from ..generation.text_requests import headers_of
from .usage import StreamUsage

NumberedNews = AsyncGenerator[tuple[int, News], None]


class CompletionStream:
    """Chunks as they come, each of one choice.

    Its `Opening` comes when every answer has begun: what is wrong with any of the prompts is still answered with a
    status, and the headers are those of all of them.

    Args:
        head: what every chunk begins with.
        logprobs: makes those of one answer; None tells none.
        answered: called once, when every answer is complete.
    """

    def __init__(
        self,
        head: Mapping[str, object],
        *,
        prompts: int,
        logprobs: Callable[[], LegacyLogprobs] | None,
        usage: StreamUsage,
        answered: Callable[[], None],
    ) -> None:
        self._head = head
        self._prompts = prompts
        self._logprobs = None if logprobs is None else [logprobs() for _ in range(prompts)]
        self._usage = usage
        self._answered = answered
        self._finished = 0

    async def events(self, news: NumberedNews) -> Events:
        started: list[Started] = []
        async with aclosing(news):
            async for index, item in news:
                self._usage.note(index, item)
                if isinstance(item, Started):
                    started.append(item)
                    if len(started) == self._prompts:
                        yield Opening(headers_of(started))
                for document in self._documents(index, item):
                    yield document

    def _documents(self, index: int, item: News) -> list[Document]:
        match item:
            case Echo(text) | Piece(text):
                logprobs = None if self._logprobs is None else self._logprobs[index].of(item)
                return [self._chunk(index, choice(index, text, logprobs=logprobs))]
            case Finished(finish_reason):
                self._finished += 1
                return self._end(index, choice(index, "", finish_reason=finish_reason))
            case _:
                return []

    def _end(self, index: int, last: dict[str, object]) -> list[Document]:
        if self._finished < self._prompts:
            return [self._chunk(index, last)]
        self._answered()
        if not self._usage.at_end:
            return [self._chunk(index, last, is_last=True)]
        document = {**self._head, "choices": [], **self._usage.of_all()}
        return [self._chunk(index, last), Document(document, is_last=True)]

    def _chunk(self, index: int, told: dict[str, object], *, is_last: bool = False) -> Document:
        return Document({**self._head, "choices": [told], **self._usage.of_chunk(index)}, is_last=is_last)


def choice(
    index: int, text: str, *, logprobs: LegacyLines | None = None, finish_reason: FinishReason | None = None
) -> dict[str, object]:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}

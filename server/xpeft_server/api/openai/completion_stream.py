"""The answers to the prompts of one request as one stream of chunks, in the shape of /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from xpeft_server.engine.requests import Finished, FinishReason, News, Piece, Started

from ..event_stream import Document, Events, Opening
from ..generation.logprobs import LegacyLines, LegacyLogprobs
from ..generation.text_requests import headers_of, usage

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
        include_usage: bool,
        answered: Callable[[], None],
    ) -> None:
        self._head = head
        self._prompts = prompts
        self._logprobs = None if logprobs is None else [logprobs() for _ in range(prompts)]
        self._include_usage = include_usage
        self._answered = answered
        self._finished: list[Finished] = []

    async def events(self, news: NumberedNews) -> Events:
        started: list[Started] = []
        async with aclosing(news):
            async for index, item in news:
                if isinstance(item, Started):
                    started.append(item)
                    if len(started) == self._prompts:
                        yield Opening(headers_of(started))
                for document in self._documents(index, item):
                    yield document

    def _documents(self, index: int, item: News) -> list[Document]:
        match item:
            case Piece(text):
                logprobs = None if self._logprobs is None else self._logprobs[index].of(item)
                return [self._chunk(choice(index, text, logprobs=logprobs))]
            case Finished(finish_reason):
                self._finished.append(item)
                return self._end(choice(index, "", finish_reason=finish_reason))
            case _:
                return []

    def _end(self, last: dict[str, object]) -> list[Document]:
        if len(self._finished) < self._prompts:
            return [self._chunk(last)]
        self._answered()
        if not self._include_usage:
            return [self._chunk(last, is_last=True)]
        document = {**self._head, "choices": [], "usage": usage(self._finished)}
        return [self._chunk(last), Document(document, is_last=True)]

    def _chunk(self, told: dict[str, object], *, is_last: bool = False) -> Document:
        later = {"usage": None} if self._include_usage else {}
        return Document({**self._head, "choices": [told], **later}, is_last=is_last)


def choice(
    index: int, text: str, *, logprobs: LegacyLines | None = None, finish_reason: FinishReason | None = None
) -> dict[str, object]:
    return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason}

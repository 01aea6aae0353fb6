"""POST /v1/chat/completions, in OpenAI's shape."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp

from xpeft_server.engine.requests import ChosenToken, Finished, FinishReason, GenerateRequest, Piece, Started

from ..connection.departure import unless_client_leaves
from ..event_stream import Document, Events, EventStream, Opening
from ..generation.logprobs import token_documents
from ..generation.text_requests import TextRequests, WholeAnswer, generate_request, headers_of
from ..ids import new_id
from ..names import asked_model
from ..replies import Reply, json_reply
from .chat_wire import ChatBody, check_counts
from .usage import StreamUsage, openai_usage

_FIELDS: Final = {"profile": "model", "prompt": "messages", "max_new_tokens": "max_completion_tokens"}


class _Asked(NamedTuple):
    """``id``, ``created`` (unix seconds) and ``model`` stand in every part of the answer."""

    request: GenerateRequest
    id: str
    created: int
    model: str
    usage: StreamUsage

    def head(self, kind: str) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def logprobs(self, tokens: tuple[ChosenToken, ...]) -> dict[str, object] | None:
        if self.request.sampling.logprobs is None:
            return None
        return {"content": token_documents(tokens), "refusal": None}


class Chat:
    """A chat gets its next message, whole or as a stream."""

    def __init__(self, requests: TextRequests) -> None:
        self._requests = requests

    async def complete(self, request: Request) -> ASGIApp:
        body = await self._requests.read(request, ChatBody, check_counts)
        name = asked_model(None, body.model)
        asked = _Asked(
            generate_request(
                request,
                name,
                tuple(message.message() for message in body.messages),
                body,
                max_new_tokens=body.max_new_tokens,
                logprobs=body.told_logprobs,
            ),
            "chatcmpl-" + new_id(),
            int(time.time()),
            name,
            body.stream_usage(),
        )
        if body.stream:
            return EventStream(self._events(asked))
        work = self._requests.answer(asked.request, _FIELDS)
        answer = await unless_client_leaves(request.scope, request.receive, work)
        self._requests.count(asked.request)
        return _reply(asked, answer)

    async def _events(self, asked: _Asked) -> Events:
        async with aclosing(self._requests.news(asked.request, _FIELDS)) as news:
            async for item in news:
                asked.usage.note(0, item)
                match item:
                    case Started():
                        yield Opening(headers_of([item]))
                        yield _chunk(asked, {"role": "assistant", "content": ""})
                    case Piece(text, tokens):
                        yield _chunk(asked, {"content": text}, tokens)
                    case Finished(finish_reason):
                        self._requests.count(asked.request)
                        yield _chunk(asked, {}, finish_reason=finish_reason)
                        if asked.usage.at_end:
                            end = {**asked.head("chat.completion.chunk"), "choices": [], **asked.usage.of_all()}
                            yield Document(end, is_last=True)


def _chunk(
    asked: _Asked,
    delta: dict[str, object],
    tokens: tuple[ChosenToken, ...] = (),
    finish_reason: FinishReason | None = None,
) -> Document:
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": asked.logprobs(tokens) if tokens else None,
        "finish_reason": finish_reason,
    }
    document = {**asked.head("chat.completion.chunk"), "choices": [choice], **asked.usage.of_chunk(0)}
    return Document(document, is_last=finish_reason is not None and not asked.usage.at_end)


def _reply(asked: _Asked, answer: WholeAnswer) -> Reply:
    tokens = tuple(token for piece in answer.pieces for token in piece.tokens)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": asked.logprobs(tokens),
        "finish_reason": answer.finished.finish_reason,
    }
    document = {**asked.head("chat.completion"), "choices": [choice], "usage": openai_usage([answer.finished])}
    return json_reply(document, headers=headers_of([answer.started], [answer.finished]))

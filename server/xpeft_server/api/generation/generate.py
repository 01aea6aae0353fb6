"""POST /v1/generate."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp

from xpeft_server.engine.requests import Finished, GenerateRequest, Piece, Started

from ..connection.departure import unless_client_leaves
from ..event_stream import Document, Events, EventStream, Opening
from ..ids import new_id
from ..names import asked_model
from ..replies import json_reply
from .logprobs import token_documents
from .text_requests import TextRequests, WholeAnswer, generate_request, headers_of, usage
from .wire import GenerateBody

# The engine's fields are called here as the engine calls them.
_FIELDS: Final[Mapping[str, str]] = {}


class Generate:
    """A prompt goes on, whole or as a stream."""

    def __init__(self, requests: TextRequests) -> None:
        self._requests = requests

    async def generate(self, request: Request) -> ASGIApp:
        body = await self._requests.read(request, GenerateBody)
        name = asked_model(body.profile, body.model)
        prompt = body.prompt if isinstance(body.prompt, str) else tuple(body.prompt)
        asked = generate_request(
            request, name, prompt, body, max_new_tokens=body.max_new_tokens, logprobs=body.logprobs
        )
        id_ = "generate-" + new_id()
        if body.stream:
            return EventStream(self._events(id_, asked))
        answer = await unless_client_leaves(request.scope, request.receive, self._requests.answer(asked, _FIELDS))
        self._requests.count(asked)
        document = {"id": id_, "profile": name, **_document(answer, logprobs=body.logprobs is not None)}
        return json_reply(document, headers=headers_of([answer.started], [answer.finished]))

    async def _events(self, id_: str, asked: GenerateRequest) -> Events:
        logprobs = asked.sampling.logprobs is not None
        async with aclosing(self._requests.news(asked, _FIELDS)) as news:
            async for item in news:
                match item:
                    case Started():
                        yield Opening(headers_of([item]))
                    case Piece(text, tokens):
                        told = {"logprobs": token_documents(tokens, ids=True)} if logprobs else {}
                        yield Document({"id": id_, "text": text, **told})
                    case Finished(finish_reason):
                        self._requests.count(asked)
                        end = {"id": id_, "text": "", "finish_reason": finish_reason, "usage": usage([item])}
                        yield Document(end, is_last=True)


def _document(answer: WholeAnswer, *, logprobs: bool) -> dict[str, object]:
    document: dict[str, object] = {
        "profile_version": answer.started.profile_version,
        "text": answer.text,
        "finish_reason": answer.finished.finish_reason,
    }
    if logprobs:
        document["logprobs"] = [line for piece in answer.pieces for line in token_documents(piece.tokens, ids=True)]
    return {**document, "usage": usage([answer.finished])}

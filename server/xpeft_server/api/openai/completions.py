"""POST /v1/completions, in OpenAI's shape."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp

from xpeft_server.engine.requests import PromptGroup

from ..bodies.counts import check_count
from ..connection.departure import unless_client_leaves
from ..event_stream import EventStream
from ..generation.logprobs import LegacyLogprobs
from ..generation.text_requests import TextRequests, WholeAnswer, generate_request, headers_of
from ..ids import new_id
from ..names import asked_model
from ..replies import Reply, json_reply
from ..side_by_side import all_of, interleaved
from .completion_stream import CompletionStream, choice
from .completions_wire import CompletionBody, count_of_prompts
from .usage import openai_usage

_FIELDS: Final = {"profile": "model", "max_new_tokens": "max_tokens"}


class Completions:
    """Prompts go on, side by side, whole or as one stream."""

    def __init__(self, requests: TextRequests) -> None:
        self._requests = requests

    async def complete(self, request: Request) -> ASGIApp:
        body = await self._requests.read(request, CompletionBody, self._check_counts)
        name = asked_model(None, body.model)
        prompts = body.prompts()
        id_ = new_id()
        ask = partial(
            generate_request,
            max_new_tokens=body.max_tokens,
            logprobs=body.logprobs,
            echo=body.echo,
            group=PromptGroup(id_, len(prompts)) if len(prompts) > 1 else None,
        )
        asked = [ask(request, name, prompt, body) for prompt in prompts.values()]
        fields = [{**_FIELDS, "prompt": place} for place in prompts]
        head = {
            "id": "cmpl-" + id_,
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        logprobs = None if body.logprobs is None else partial(LegacyLogprobs, body.stops())
        if not body.stream:
            works = map(self._requests.answer, asked, fields)
            answers = await unless_client_leaves(request.scope, request.receive, all_of(works))
            self._requests.count(asked[0])
            return await _reply(head, answers, logprobs=logprobs)
        stream = CompletionStream(
            head,
            prompts=len(asked),
            logprobs=logprobs,
            usage=body.stream_usage(),
            answered=partial(self._requests.count, asked[0]),
        )
        return EventStream(stream.events(interleaved([*map(self._requests.news, asked, fields)])))

    def _check_counts(self, document: Mapping[str, object]) -> None:
        prompts = count_of_prompts(document.get("prompt"))
        message = "prompt has {count} prompts, more than the {most} of one request"
        check_count("prompt", prompts, self._requests.max_inputs, message, code="too_many_inputs")


async def _reply(
    head: dict[str, object], answers: list[WholeAnswer], *, logprobs: Callable[[], LegacyLogprobs] | None
) -> Reply:
    choices = [
        choice(
            index,
            answer.text,
            logprobs=None if logprobs is None else await logprobs().of_all(answer.pieces),
            finish_reason=answer.finished.finish_reason,
        )
        for index, answer in enumerate(answers)
    ]
    finished = [answer.finished for answer in answers]
    headers = headers_of([answer.started for answer in answers], finished)
    return json_reply({**head, "choices": choices, "usage": openai_usage(finished)}, headers=headers)

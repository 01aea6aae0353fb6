"""POST /v1/completions, in OpenAI's shape."""

from __future__ import annotations

import time
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp

from .completion_stream import CompletionStream, choice
from .completions_wire import CompletionBody
from .departure import unless_client_leaves
from .errors import ApiError
from .event_stream import EventStream
from .generation import Answer, Generation, generate_request, headers_of, usage
from .ids import new_id
from .logprobs import LegacyLogprobs
from .names import asked_model
from .replies import Reply, json_reply
from .side_by_side import all_of, interleaved

_FIELDS: Final = {"profile": "model", "max_new_tokens": "max_tokens"}


class Completions:
    """Prompts go on, side by side, whole or as one stream."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    async def complete(self, request: Request) -> ASGIApp:
        body = await self._generation.read(request, CompletionBody)
        name = asked_model(None, body.model)
        prompts = self._prompts(body)
        asked = [
            generate_request(request, name, prompt, body, max_new_tokens=body.max_tokens, logprobs=body.logprobs)
            for prompt in prompts.values()
        ]
        fields = [{**_FIELDS, "prompt": place} for place in prompts]
        head = {
            "id": "cmpl-" + new_id(),
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        if not body.stream:
            works = map(self._generation.answer, asked, fields)
            answers = await unless_client_leaves(request.scope, request.receive, all_of(works))
            self._generation.count(asked[0])
            return _reply(head, answers, logprobs=body.logprobs is not None)
        stream = CompletionStream(
            head,
            prompts=len(asked),
            logprobs=body.logprobs is not None,
            include_usage=body.include_usage,
            answered=partial(self._generation.count, asked[0]),
        )
        return EventStream(stream.events(interleaved([*map(self._generation.news, asked, fields)])))

    def _prompts(self, body: CompletionBody) -> dict[str, str | tuple[int, ...]]:
        prompts = body.prompts()
        most = self._generation.max_inputs
        if len(prompts) > most:
            message = f"prompt has {len(prompts)} prompts, more than the {most} of one request"
            raise ApiError(422, "too_many_inputs", message, param="prompt")
        return prompts


def _reply(head: dict[str, object], answers: list[Answer], *, logprobs: bool) -> Reply:
    choices = [
        choice(
            index,
            answer.text,
            logprobs=LegacyLogprobs().of_all(answer.pieces) if logprobs else None,
            finish_reason=answer.finished.finish_reason,
        )
        for index, answer in enumerate(answers)
    ]
    finished = [answer.finished for answer in answers]
    headers = headers_of([answer.started for answer in answers], finished)
    return json_reply({**head, "choices": choices, "usage": usage(finished)}, headers=headers)

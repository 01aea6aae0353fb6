"""POST /v1/profiles/{name}/tune, and /v1/jobs: tuning on the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

from starlette.requests import Request
from starlette.types import ASGIApp, Scope

from xpeft_profiles import JobKey, Match, ProfileKey
from xpeft_server.jobs.errors import InvalidTuning, TooManyRows
from xpeft_server.jobs.requests import TuningExample, TuningRequest
from xpeft_server.settings import Settings

from ..access.table import JOBS_PREFIX
from ..bodies.counts import check_count, length_of
from ..bodies.json_bodies import parse_json
from ..bodies.reader import read_body
from ..conditions import match_of
from ..context import Change, context_of
from ..event_stream import Document, Events, EventStream, Opening
from ..media import prefers_events
from ..names import profile_to_write
from ..paging import asked_limit, known_parameters
from ..replies import JSON, VARY, Reply, json_reply
from .tuner_port import TunerPort
from .wire import TuneBody, TuningCompletionBody, TuningExampleBody, job_document


class Jobs:
    """The tuning jobs of the caller's tenant; those of others do not exist for it."""

    def __init__(self, settings: Settings, *, tuner: TunerPort) -> None:
        self._max_bytes = settings.max_body_bytes
        self._body_seconds = settings.body_seconds
        self._max_rows = settings.max_tuning_rows
        self._tuner = tuner

    async def submit(self, request: Request) -> Reply:
        scope = request.scope
        context = context_of(scope)
        context.profile = profile_to_write(scope)
        profile = ProfileKey(context.principal.tenant, context.profile)
        match = match_of(scope)
        data = await read_body(
            scope, request.receive, limit=self._max_bytes, media_type=JSON, seconds=self._body_seconds
        )
        # Thousands of rows take longer than the event loop has time for.
        asked = await asyncio.to_thread(self._asked, data, profile, match)
        record = await self._tuner.submit(asked)
        context_of(scope).change = Change(job=record.id)
        location = (b"location", f"{JOBS_PREFIX}{record.id}".encode())
        return json_reply(job_document(record), status=202, headers=[location])

    def _asked(self, data: bytes, profile: ProfileKey, match: Match) -> TuningRequest:
        """Raises: what `parse_json` raises; InvalidTuning."""
        body = parse_json(data, TuneBody, self._check_counts, items=self._max_rows)
        return TuningRequest(
            profile=profile,
            examples=tuple(map(_example, body.examples)),
            labels=None if body.labels is None else tuple(body.labels),
            settings=body.settings.given(),
            match=match,
            completions=_completions(body),
        )

    def _check_counts(self, document: Mapping[str, object]) -> None:
        # In the words of the tuner, which checks it again.
        examples = length_of(document.get("examples"))
        message = "there are {count} examples, more than the {most} of one job"
        check_count("examples", examples, self._max_rows, message, code=TooManyRows.code)

    async def get(self, request: Request) -> ASGIApp:
        key = _key(request.scope)
        record = await self._tuner.get(key)
        if request.method == "GET" and prefers_events(request.headers.get("accept")):
            return EventStream(self._documents(key), headers=[VARY])
        return json_reply(job_document(record), headers=[VARY])

    async def _documents(self, key: JobKey) -> Events:
        async with aclosing(self._tuner.follow(key)) as records:
            yield Opening(())
            async for record in records:
                yield Document(job_document(record), is_last=record.finished is not None)

    async def cancel(self, request: Request) -> Reply:
        record = await self._tuner.cancel(_key(request.scope))
        context_of(request.scope).change = Change(profile=record.profile)
        return json_reply(job_document(record))

    async def list(self, request: Request) -> Reply:
        known_parameters(request, "limit", "cursor")
        parameters = request.query_params
        records, next_cursor = await self._tuner.list(
            context_of(request.scope).principal.tenant,
            limit=asked_limit(parameters.get("limit")),
            cursor=parameters.get("cursor"),
        )
        jobs = [job_document(record) for record in records]
        return json_reply({"object": "list", "data": jobs, "next_cursor": next_cursor})


def _example(row: TuningExampleBody | TuningCompletionBody) -> TuningExample:
    if isinstance(row, TuningCompletionBody):
        return TuningExample(row.prompt, row.completion, split=row.split)
    return TuningExample(row.text, row.label, row.text_pair, row.split)


def _completions(body: TuneBody) -> bool:
    """Whether the examples are prompts with completions. Raises: InvalidTuning if only some are."""
    first, *rest = (isinstance(row, TuningCompletionBody) for row in body.examples)
    for number, each in enumerate(rest, start=1):
        if each is not first:
            has, wanted = ("a completion", "labels") if each else ("a label", "completions")
            where = f"examples[{number}]"
            raise InvalidTuning(f"{where} has {has}, but the examples before it have {wanted}", param=where)
    return first


def _key(scope: Scope) -> JobKey:
    path: str = scope["path"]
    return JobKey(context_of(scope).principal.tenant, path.removeprefix(JOBS_PREFIX).partition("/")[0])

"""POST /v1/classify."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.requests import Request

from xpeft_profiles import ProfileKey
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, TextInput
from xpeft_server.settings import Settings

from .bodies.counts import check_count, length_of
from .bodies.json_bodies import parse_json
from .bodies.reader import read_body
from .connection.departure import unless_client_leaves
from .context import context_of
from .engine_port import EnginePort
from .ids import new_id
from .names import asked_profile
from .replies import JSON, UNVERIFIED, Reply, json_reply
from .wire import ClassifyBody, TextPairBody


class Classify:
    """Turns a body into a request to the engine, and its answer into a body."""

    def __init__(self, settings: Settings, *, engine: EnginePort, metrics: Metrics) -> None:
        self._max_bytes = settings.max_body_bytes
        self._body_seconds = settings.body_seconds
        self._max_inputs = settings.max_inputs
        self._engine = engine
        self._metrics = metrics

    async def classify(self, request: Request) -> Reply:
        scope = request.scope
        data = await read_body(
            scope, request.receive, limit=self._max_bytes, media_type=JSON, seconds=self._body_seconds
        )
        context = context_of(scope)
        tenant = context.principal.tenant
        # Before the body is parsed: parsing what will be refused takes processors from what is computed.
        self._engine.check_room(tenant)
        body = parse_json(data, ClassifyBody, self._check_counts, items=self._max_inputs)
        name = context.profile = asked_profile(body.profile, body.model)
        asked = ClassifyRequest(ProfileKey(tenant, name), _inputs(body), body.truncate, context.journey)
        answer = await unless_client_leaves(scope, request.receive, self._engine.classify(asked))
        self._metrics.profile_requests.count(tenant, name)
        return json_reply(_document(name, answer), headers=_headers(answer))

    def _check_counts(self, document: Mapping[str, object]) -> None:
        texts = length_of(document.get("input"))
        message = "input has {count} texts, more than the {most} of one request"
        check_count("input", texts, self._max_inputs, message, code="too_many_inputs")


def _inputs(body: ClassifyBody) -> tuple[TextInput, ...]:
    given = body.input
    if isinstance(given, str):
        return (TextInput(given),)
    return tuple(
        TextInput(item.text, item.text_pair) if isinstance(item, TextPairBody) else TextInput(item) for item in given
    )


def _document(name: str, answer: ClassifyAnswer) -> dict[str, object]:
    return {
        "id": "classify-" + new_id(),
        "object": "list",
        "created": int(time.time()),
        "profile": name,
        "profile_version": answer.profile_version,
        "labels": answer.labels,
        "data": [
            {"index": index, "label": label, "score": score, "probs": probs, "num_classes": num_classes}
            for index, (label, score, probs, num_classes) in enumerate(answer.data)
        ],
        "usage": {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens},
    }


def _headers(answer: ClassifyAnswer) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"x-profile-version", answer.profile_version.encode()),
        (b"x-queue-time", b"%.6f" % answer.queue_time),
        (b"x-inference-time", b"%.6f" % answer.inference_time),
    ]
    return headers if answer.verified else [*headers, UNVERIFIED]

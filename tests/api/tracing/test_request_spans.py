"""Requests as spans: whose children they are, what they say, and which get none."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.trace import SpanKind, StatusCode

from xpeft_server.api.app import create_app
from xpeft_server.api.tracing.request_spans import MOST_STAGES, RequestSpans
from xpeft_server.engine.errors import Unavailable
from xpeft_server.log_lines import request_labels

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VERSION = "sha256:" + "cd" * 32


class Traced:
    """A server whose spans are kept."""

    def __init__(self, ratio, make_app):
        self._kept = InMemorySpanExporter()
        provider = TracerProvider(sampler=ParentBasedTraceIdRatio(ratio), shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._kept))
        transport = httpx.ASGITransport(make_app(RequestSpans(provider.get_tracer("test"))), client=("192.0.2.7", 1))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://server")

    def classify(self, **headers):
        body = {"profile": "desk", "input": "a text"}
        return self.client.post("/v1/classify", json=body, headers={"x-request-id": "r-1", **headers})

    def spans(self):
        return self._kept.get_finished_spans()

    def server_span(self):
        (span,) = [span for span in self.spans() if span.kind is SpanKind.SERVER]
        return span


@pytest.fixture
async def traced(settings, engine, store, tuner, keys, metrics, audit):
    servers = []
    parts = {"engine": engine, "store": store, "tuner": tuner, "keys": keys, "metrics": metrics, "audit": audit}

    def start(ratio=1.0):
        servers.append(Traced(ratio, lambda spans: create_app(settings, spans=spans, **parts)))
        return servers[-1]

    yield start
    for server in servers:
        await server.client.aclose()


@pytest.fixture
def noted(engine):
    """An engine that notes stages, and when."""
    now = time.monotonic()

    async def classify(request, whole=engine.classify):
        answer = await whole(request)
        request.journey.note("queue", now - 2.0, now - 1.5)
        request.journey.note("forward", now - 1.5, now - 0.5, texts=3, tokens=40)
        request.journey.profile_version = answer.profile_version
        request.journey.prompt_tokens = answer.prompt_tokens
        return answer

    engine.classify = classify
    return now


async def test_a_request_is_a_span_in_the_words_of_the_conventions_with_a_child_for_each_stage(traced, noted):
    server = traced()
    before = time.time()
    await server.classify()
    queue, forward, root = server.spans()
    assert (root.name, root.kind, root.parent) == ("POST /v1/classify", SpanKind.SERVER, None)
    assert dict(root.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "url.scheme": "http",
        "client.address": "192.0.2.7",
        "xpeft.request_id": "r-1",
        "xpeft.outcome": "ok",
        "xpeft.tenant": "default",
        "xpeft.profile": "desk",
        "xpeft.profile_version": VERSION,
        "gen_ai.usage.input_tokens": 7,
    }
    assert root.status.status_code is StatusCode.UNSET
    assert [(span.name, span.parent.span_id) for span in (queue, forward)] == [
        ("queue", root.context.span_id),
        ("forward", root.context.span_id),
    ]
    assert dict(forward.attributes) == {"xpeft.texts": 3, "xpeft.tokens": 40}
    assert queue.end_time - queue.start_time == pytest.approx(0.5e9, abs=1000)
    assert forward.end_time - forward.start_time == pytest.approx(1e9, abs=1000)
    assert queue.end_time == forward.start_time
    # Monotonic times have become those of the wall.
    assert forward.end_time / 1e9 == pytest.approx(before + noted - 0.5 - time.monotonic(), abs=5)
    assert before - 5 < root.start_time / 1e9 < root.end_time / 1e9 < time.time() + 5


async def test_a_client_that_names_its_span_is_the_parent(traced):
    server = traced()
    await server.classify(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1")
    root = server.server_span()
    assert (f"{root.context.trace_id:032x}", f"{root.parent.span_id:016x}") == (TRACE, PARENT)
    assert root.context.trace_state.get("vendor") == "1"


@pytest.mark.parametrize(
    ("ratio", "traceparent", "recorded"),
    [
        (1.0, None, True),
        (0.0, None, False),
        (0.0, f"00-{TRACE}-{PARENT}-01", True),
        (1.0, f"00-{TRACE}-{PARENT}-00", False),
        (1.0, "nonsense", True),
    ],
)
async def test_the_client_decides_what_is_traced_and_the_ratio_where_it_does_not(traced, ratio, traceparent, recorded):
    server = traced(ratio)
    await server.classify(**({"traceparent": traceparent} if traceparent else {}))
    assert bool(server.spans()) is recorded


@pytest.mark.parametrize(
    ("headers", "has_parent"),
    [
        ({"traceparent": f"01-{TRACE}-{PARENT}-01{'-x' * 400}"}, False),
        ({"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b," * 200}, True),
    ],
)
async def test_headers_that_are_too_long_are_as_good_as_none_and_cost_no_line(traced, headers, has_parent, caplog):
    server = traced()
    await server.classify(**headers)
    root = server.server_span()
    assert (root.parent is not None) is has_parent
    assert len(root.context.trace_state) == 0
    assert caplog.text == ""


async def test_probes_and_scrapes_get_no_span(traced):
    server = traced()
    for path in ("/health", "/ready", "/metrics"):
        assert (await server.client.get(path)).status_code == 200
    assert server.spans() == ()


async def test_a_path_that_is_no_route_is_in_no_span(traced):
    server = traced()
    await server.client.request("BREW", "/secret/path")
    root = server.server_span()
    assert root.name == "HTTP"
    assert root.attributes["http.request.method"] == "_OTHER"
    assert "secret" not in str(dict(root.attributes))
    assert (root.attributes["http.response.status_code"], root.status.status_code) == (404, StatusCode.UNSET)


async def test_a_key_that_was_given_for_a_name_is_in_no_span(traced):
    server = traced()
    key = "xp_" + "k" * 43
    await server.client.get(f"/v1/profiles/{key}", headers={"x-request-id": key})
    (root,) = server.spans()
    assert key not in str(dict(root.attributes))
    assert root.attributes["url.path"] == "/v1/profiles/***"


async def test_a_request_that_fails_shows_where_it_was_then(traced, engine):
    async def classify(request):
        request.journey.note("store", 1.0, 4.0, question="load")
        raise Unavailable("the store is down")

    engine.classify = classify
    server = traced()
    await server.classify()
    store, root = server.spans()
    assert (store.name, store.attributes["xpeft.question"]) == ("store", "load")
    assert root.status.status_code is StatusCode.ERROR
    assert (root.attributes["error.type"], root.attributes["xpeft.outcome"]) == ("503", "server_error")


async def test_a_request_whose_client_left_has_no_status(traced, engine):
    engine.hold = asyncio.Event()
    server = traced()
    asked = asyncio.create_task(server.classify())
    await engine.waiting.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    root = server.server_span()
    assert root.attributes["xpeft.outcome"] == "cancelled"
    assert "http.response.status_code" not in root.attributes


async def test_a_request_of_very_many_stages_says_how_many_it_leaves_out(traced, engine):
    async def classify(request, whole=engine.classify):
        for number in range(MOST_STAGES + 3):
            request.journey.note("forward", number, number + 1)
        return await whole(request)

    engine.classify = classify
    server = traced()
    await server.classify()
    assert len(server.spans()) == MOST_STAGES + 1
    assert server.server_span().attributes["xpeft.stages_left_out"] == 3


async def test_what_is_logged_meanwhile_names_the_span(traced, engine):
    labels = []

    async def classify(request, whole=engine.classify):
        labels.append(request_labels.get()())
        return await whole(request)

    engine.classify = classify
    server = traced()
    await server.classify()
    context = server.server_span().context
    assert labels == [
        {
            "request_id": "r-1",
            "tenant": "default",
            "trace_id": f"{context.trace_id:032x}",
            "span_id": f"{context.span_id:016x}",
        }
    ]

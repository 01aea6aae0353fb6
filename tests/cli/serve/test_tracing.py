"""Tracing as the settings say: what is refused, and a collector that gets it."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from xpeft_server.api.context import RequestContext
from xpeft_server.cli.serve.tracing import Tracing, build_tracing
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings, SettingsInvalid


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    names = ("opentelemetry.trace", "opentelemetry.util.re", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).filters)) for name in names}
    yield
    for name, (level, filters) in before.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).filters = filters


def build(environ: dict[str, str] | None = None, **settings: Any) -> Tracing | None:
    return build_tracing(Settings(**settings), environ or {}, Metrics())


def scope(**headers: str) -> dict[str, Any]:
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/v1/classify", "headers": sent}


def trace_one(tracing: Tracing, **headers: str) -> None:
    request = scope(**headers)
    context = RequestContext(request)
    span = tracing.spans.begin(request, context)
    assert span is not None
    context.journey.note("tokenise", 1.0, 1.5, texts=2)
    span.end(request, context, status=200, outcome="ok")


def test_without_an_endpoint_nothing_is_traced_and_the_sdk_is_not_even_imported() -> None:
    assert build() is None
    program = (
        "import sys; sys.modules['opentelemetry.sdk'] = None;"
        "from xpeft_server.cli.serve.tracing import build_tracing; from xpeft_server.settings import Settings;"
        "print(build_tracing(Settings(), {}, None))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
def test_the_sdks_own_variable_alone_traces_nothing_and_that_is_said(
    variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert build({variable: "http://collector:4318"}) is None
    assert caplog.messages == [f"{variable} is set, but nothing is traced without --otlp-endpoint"]


def test_without_the_extra_the_start_is_refused_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "xpeft_server.cli.serve.otel_tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.sampling", None)
    with pytest.raises(SettingsInvalid, match=r"otlp_endpoint = 'http://c:4318' needs .* -e '\.\[otel\]'"):
        build(otlp_endpoint="http://c:4318")


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
@pytest.mark.parametrize("value", ["a=b,hush", "=hush", "hush"])
def test_headers_that_cannot_be_read_are_refused_without_showing_them(variable: str, value: str) -> None:
    with pytest.raises(SettingsInvalid, match=rf"{variable}: item \d is not NAME=VALUE") as refused:
        build({variable: value}, otlp_endpoint="http://c:4318")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("path", ["", "/", "/v1/traces"])
def test_a_collector_gets_the_tree_with_what_the_server_is(
    collector: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.namespace=nlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hush")
    tracing = build(otlp_endpoint=collector.url + path)
    assert tracing is not None
    trace_one(tracing)
    tracing.close(10)
    (request,) = collector.requests
    assert (request.path, request.headers["authorization"]) == ("/v1/traces", "Bearer hush")
    resource = collector.resource()
    assert (resource["service.name"], resource["service.namespace"]) == ("xpeft-server", "nlp")
    assert resource["deployment.environment.name"] == "test"
    assert resource["service.version"]
    child, root = collector.spans()
    assert (root.name, root.kind, child.name) == ("POST /v1/classify", Span.SPAN_KIND_SERVER, "tokenise")
    assert (child.trace_id, child.parent_span_id) == (root.trace_id, root.span_id)
    assert child.end_time_unix_nano - child.start_time_unix_nano == 500_000_000


def test_the_name_of_the_service_can_be_another(collector: Any) -> None:
    tracing = build({"OTEL_SERVICE_NAME": "desk"}, otlp_endpoint=collector.url)
    assert tracing is not None
    trace_one(tracing)
    tracing.close(10)
    assert collector.resource()["service.name"] == "desk"


def test_the_ratio_is_that_of_the_settings(collector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    tracing = build(otlp_endpoint=collector.url, trace_sample_ratio=0.0)
    assert tracing is not None
    trace_one(tracing)
    tracing.close(10)
    assert collector.requests == []


def test_nonsense_from_clients_costs_no_line_of_the_log(collector: Any, caplog: pytest.LogCaptureFixture) -> None:
    tracing = build(otlp_endpoint=collector.url)
    assert tracing is not None
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for state in ("not a member", "a=b,a=b", "a=" + "b" * 300, "A B=c"):
        trace_one(tracing, traceparent=parent, tracestate=state)
    tracing.close(10)
    assert len(collector.spans()) == 8
    assert caplog.text == ""


def test_a_collector_that_refuses_is_told_of_with_its_words(collector: Any, caplog: pytest.LogCaptureFixture) -> None:
    collector.status = 401
    tracing = build(otlp_endpoint=collector.url)
    assert tracing is not None
    trace_one(tracing)
    tracing.close(10)
    first, last = caplog.messages
    assert first.startswith(f"spans cannot be sent to {collector.url}/v1/traces, they are lost until they can: ")
    assert "401" in first
    assert last == "the last spans were not sent: the collector did not take them in time"

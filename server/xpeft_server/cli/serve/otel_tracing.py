"""Puts OpenTelemetry's SDK together: what is traced, and where the spans go."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

from xpeft_server.api.tracing.request_spans import RequestSpans
from xpeft_server.api.tracing.span_export import WAITING, BoundedSpans, SpanSender, Unsaid, end_within
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import SettingsInvalid
from xpeft_server.version import VERSION

logger = logging.getLogger(__name__)

_PATH: Final = "/v1/traces"
_SERVICE: Final = "xpeft-server"
_HEADERS: Final = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
# Every client can make the first speak as often as it likes; the second would quote a header of the collector's.
_SILENT: Final = ("opentelemetry.trace", "opentelemetry.util.re")
_EXPORTER: Final = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class OtelTracing:
    """See `Tracing`. The SDK reads everything else from its ``OTEL_…`` variables.

    Args:
        endpoint: a collector's URL; ``/v1/traces`` is added if it is not there.
        ratio: share of requests traced where the client does not decide.
    Raises: SettingsInvalid if a variable cannot be used.
    """

    def __init__(self, endpoint: str, ratio: float, *, environ: Mapping[str, str], metrics: Metrics) -> None:
        _check_headers(environ)
        for name in _SILENT:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        reasons = Unsaid()
        reasons.silence(logging.getLogger(_EXPORTER))
        url = endpoint if endpoint.endswith(_PATH) else endpoint.rstrip("/") + _PATH
        counters = metrics.trace_spans
        try:
            self._sender = SpanSender(OTLPSpanExporter(url), shown=url, reasons=reasons, counters=counters)
            batches = BatchSpanProcessor(self._sender, max_queue_size=WAITING)
        except (ValueError, RuntimeError) as error:
            raise SettingsInvalid(f"an OTEL_ variable cannot be used: {error}") from None
        self._processor = BoundedSpans(batches, self._sender, counters=counters)
        attributes = {"service.name": environ.get("OTEL_SERVICE_NAME") or _SERVICE, "service.version": VERSION}
        provider = TracerProvider(
            sampler=ParentBasedTraceIdRatio(ratio), resource=Resource.create(attributes), shutdown_on_exit=False
        )
        provider.add_span_processor(self._processor)
        self.spans = RequestSpans(provider.get_tracer(_SERVICE, VERSION))

    def close(self, seconds: float) -> None:
        if not end_within(seconds, self._processor, self._sender):
            logger.warning("the last spans were not sent: the collector did not take them in time")


def _check_headers(environ: Mapping[str, str]) -> None:
    """Raises: SettingsInvalid, without the value: it may be a secret, which the SDK would log."""
    for variable in _HEADERS:
        for number, item in enumerate(environ.get(variable, "").split(","), 1):
            name, equals, _ = item.partition("=")
            if item.strip() and not (name.strip() and equals):
                raise SettingsInvalid(f"{variable}: item {number} is not NAME=VALUE")

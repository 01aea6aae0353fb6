"""Whether requests are traced, as the settings say."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, Protocol

from xpeft_server.api.tracing.spans import Spans
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings, SettingsInvalid

logger = logging.getLogger(__name__)

_INSTALL: Final = ".venv/bin/pip install -c constraints.txt -e '.[otel]'"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing(Protocol):
    """What traces requests, and how that ends."""

    @property
    def spans(self) -> Spans:
        """For the application."""
        ...

    def close(self, seconds: float) -> None:
        """Send what waits, no longer than this."""
        ...


def build_tracing(settings: Settings, environ: Mapping[str, str], metrics: Metrics) -> Tracing | None:
    """None if nothing is traced.

    Raises: SettingsInvalid if OpenTelemetry's SDK is not installed, or a variable of it cannot be used.
    """
    if settings.otlp_endpoint is None:
        for variable in _ENDPOINTS:
            if environ.get(variable):
                logger.warning("%s is set, but nothing is traced without --otlp-endpoint", variable)
        return None
    try:
        from .otel_tracing import OtelTracing
    except ImportError as error:
        shown = f"otlp_endpoint = {settings.otlp_endpoint!r} needs OpenTelemetry's SDK, which is not installed"
        raise SettingsInvalid(f"{shown} ({error}); in a checkout: {_INSTALL}") from None
    return OtelTracing(settings.otlp_endpoint, settings.trace_sample_ratio, environ=environ, metrics=metrics)

"""Spans on their way to a collector: bounded, counted, and told of in the log when they do not get there."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import Counter

logger = logging.getLogger(__name__)

WAITING: Final = 4096
"""Spans that wait to be sent; more are lost. Some hundred requests, a few MB."""

_COUNTING_SECONDS: Final = 0.25


class SpanSender(SpanExporter):
    """Tells the log once when spans begin to be lost and once when they are sent again. For one thread.

    Args:
        shown: the collector, for the log.
        reasons: what the exporter would have logged.
        counters: of ``trace_spans``, by outcome.

    Attributes:
        taken: spans that wait no longer.
        failing: whether the last ones were lost.
    """

    def __init__(self, exporter: SpanExporter, *, shown: str, reasons: Unsaid, counters: Mapping[str, Counter]) -> None:
        self._exporter = exporter
        self._shown = shown
        self._reasons = reasons
        self._counters = counters
        self._lost_since = 0
        self.taken = 0
        self.failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._reasons.add(repr(error))
            result = SpanExportResult.FAILURE
        sent = result is SpanExportResult.SUCCESS
        self._counters["exported" if sent else "lost"].inc(len(spans))
        why = self._reasons.take()
        if not sent:
            self._lost_since += len(spans)
            if not self.failing:
                logger.warning("spans cannot be sent to %s, they are lost until they can: %s", self._shown, why)
        elif self.failing:
            logger.info("spans are sent to %s again; %d were lost", self._shown, self._lost_since)
            self._lost_since = 0
        self.failing = not sent
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class BoundedSpans(SpanProcessor):
    """Passes spans on while there is room where they wait; what finds none is counted as lost, and costs nothing more.

    Args:
        processor: takes spans without waiting.
    """

    def __init__(
        self, processor: SpanProcessor, sender: SpanSender, *, counters: Mapping[str, Counter], most: int = WAITING
    ) -> None:
        self._processor = processor
        self._sender = sender
        self._lost = counters["lost"]
        self._most = most
        self._given = 0

    def on_end(self, span: ReadableSpan) -> None:
        """In the event loop."""
        context = span.context
        if context is None or not context.trace_flags.sampled:
            return
        if self._given - self._sender.taken >= self._most:
            self._lost.inc()
            return
        self._given += 1
        self._processor.on_end(span)

    def shutdown(self) -> None:
        self._processor.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._processor.force_flush(timeout_millis)


class Unsaid(logging.Filter):
    """Keeps a logger silent, and the last two of its messages: why a try failed, and that it was the last one."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: deque[str] = deque(maxlen=2)

    def silence(self, speaker: logging.Logger) -> None:
        """From now on it is this one that hears, and no earlier one."""
        for earlier in [each for each in speaker.filters if isinstance(each, Unsaid)]:
            speaker.removeFilter(earlier)
        speaker.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        self.add(record.getMessage())
        return False

    def add(self, message: str) -> None:
        self._messages.append(message)

    def take(self) -> str:
        """What was not said since this was last asked."""
        said = " ".join(self._messages)
        self._messages.clear()
        return said or "the exporter does not say why"


def end_within(seconds: float, processor: SpanProcessor, sender: SpanSender) -> bool:
    """Send what waits, but no longer than this. Returns: whether everything was sent."""
    if sender.failing:
        seconds = 0.0
    ending = threading.Thread(target=processor.shutdown, name="span-flush", daemon=True)
    ending.start()
    ending.join(seconds)
    if ending.is_alive():
        # Ends the wait for the next try; what is left is lost, which takes a moment to count.
        sender.shutdown()
        ending.join(_COUNTING_SECONDS)
        return False
    return not sender.failing

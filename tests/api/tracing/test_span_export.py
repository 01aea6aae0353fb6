"""Spans on their way: what is lost is counted and told once, and nobody waits for a collector."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

from xpeft_server.api.tracing.span_export import BoundedSpans, SpanSender, Unsaid, end_within


class Collector(SpanExporter):
    """Takes spans when it is let, or fails, or raises."""

    def __init__(self):
        self.free = threading.Event()
        self.free.set()
        self.reached = threading.Event()
        self.failure = None
        self.spans = []

    def export(self, spans):
        self.reached.set()
        self.free.wait()
        if isinstance(self.failure, Exception):
            raise self.failure
        if self.failure:
            return SpanExportResult.FAILURE
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self):
        self.free.set()


class Road:
    def __init__(self, exporter, counters, most=8, sampler=ALWAYS_ON):
        self.reasons = Unsaid()
        self.sender = SpanSender(exporter, shown="http://collector", reasons=self.reasons, counters=counters)
        # It sends when it is told to, or as soon as there are four.
        batches = BatchSpanProcessor(
            self.sender, max_queue_size=4096, max_export_batch_size=4, schedule_delay_millis=3_600_000
        )
        self.processor = BoundedSpans(batches, self.sender, counters=counters, most=most)
        self._provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(self.processor)
        self._tracer = self._provider.get_tracer("test")

    def span(self, count=1):
        for _ in range(count):
            self._tracer.start_span("s").end()


@pytest.fixture
def counters(metrics):
    return metrics.trace_spans


@pytest.fixture
def collector():
    return Collector()


def test_what_is_sent_is_counted(collector, counters, metric):
    road = Road(collector, counters)
    road.span(3)
    assert end_within(10, road.processor, road.sender)
    assert len(collector.spans) == 3
    assert metric('xpeft_trace_spans_total{outcome="exported"}') == 3
    assert metric('xpeft_trace_spans_total{outcome="lost"}') == 0


def test_what_is_not_sampled_takes_no_room(collector, counters):
    road = Road(collector, counters, most=1, sampler=ALWAYS_OFF)
    road.span(5)
    assert end_within(10, road.processor, road.sender)
    assert collector.spans == []


def test_beyond_what_may_wait_spans_are_lost_without_a_word_each(collector, counters, metric, caplog):
    collector.free.clear()
    road = Road(collector, counters, most=8)
    road.span(4)
    assert collector.reached.wait(10)
    road.span(100)
    assert metric('xpeft_trace_spans_total{outcome="lost"}') == 92
    collector.free.set()
    assert end_within(10, road.processor, road.sender)
    assert len(collector.spans) == 12
    assert metric('xpeft_trace_spans_total{outcome="exported"}') == 12
    assert caplog.text == ""


@pytest.mark.parametrize("failure", ["failure", RuntimeError("of its own")])
def test_a_collector_that_fails_is_told_of_once_and_once_when_it_is_back(collector, counters, metric, caplog, failure):
    caplog.set_level(logging.INFO)
    collector.failure = failure
    road = Road(collector, counters)
    for _ in range(3):
        if failure == "failure":
            road.reasons.add("connection refused")
        road.span(2)
        road.processor.force_flush()
    (line,) = caplog.messages
    reason = "connection refused" if failure == "failure" else "RuntimeError('of its own')"
    assert line == f"spans cannot be sent to http://collector, they are lost until they can: {reason}"
    assert metric('xpeft_trace_spans_total{outcome="lost"}') == 6
    collector.failure = None
    road.span()
    road.processor.force_flush()
    assert caplog.messages[1:] == ["spans are sent to http://collector again; 6 were lost"]
    assert end_within(10, road.processor, road.sender)


def test_an_end_waits_no_longer_than_it_may_for_a_collector_that_does_not_answer(collector, counters):
    collector.free.clear()
    road = Road(collector, counters)
    road.span()
    began = time.monotonic()
    assert not end_within(0.1, road.processor, road.sender)
    assert time.monotonic() - began < 5


def test_a_closed_port_holds_up_nobody_and_ends_at_once_when_it_is_known(counters, metric, caplog, free_port):
    exporter = OTLPSpanExporter(f"http://127.0.0.1:{free_port()}/v1/traces", timeout=1.5)
    road = Road(exporter, counters, most=1000)
    logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    road.reasons.silence(logger)
    try:
        began = time.monotonic()
        road.span(500)
        assert time.monotonic() - began < 5
        deadline = time.monotonic() + 20
        while not road.sender.failing:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        assert not end_within(60, road.processor, road.sender)
        assert time.monotonic() - began < 10
    finally:
        logger.removeFilter(road.reasons)
    assert metric('xpeft_trace_spans_total{outcome="lost"}') >= 4
    (line,) = caplog.messages
    assert line.startswith("spans cannot be sent to http://collector")
    assert "Connection refused" in line


def test_of_several_that_silence_a_logger_the_last_one_hears():
    speaker = logging.getLogger("an exporter that speaks")
    first, second = Unsaid(), Unsaid()
    first.silence(speaker)
    second.silence(speaker)
    speaker.warning("the port is closed")
    assert (first.take(), second.take()) == ("the exporter does not say why", "the port is closed")

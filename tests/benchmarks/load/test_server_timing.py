from __future__ import annotations

import pytest

from xpeft_benchmarks.load.server_timing import parse_server_timing, server_stages


@pytest.mark.parametrize(
    ("value", "stages"),
    [
        ("queue;dur=1.5, forward;dur=20", {"queue": 0.0015, "forward": 0.02}),
        ("queue;dur=1.5,forward;dur=20", {"queue": 0.0015, "forward": 0.02}),
        ('db;desc="a, b;dur=9";dur=2, app;dur=3', {"db": 0.002, "app": 0.003}),
        ('db;desc="said \\"x\\"";dur="4"', {"db": 0.004}),
        ("db ; DUR = 5", {"db": 0.005}),
        ("miss, hit;desc=yes", {}),
        ("db;dur=1, db;dur=2", {"db": 0.003}),
        ("db;dur=soon, app;dur=-1, io;dur=inf, ok;dur=0", {"ok": 0.0}),
        ("", {}),
        (";;;,,=", {}),
    ],
)
def test_stages_are_read_in_seconds_and_what_cannot_be_read_is_left_out(value: str, stages: dict[str, float]) -> None:
    assert parse_server_timing(value) == pytest.approx(stages)


def test_the_servers_own_headers_win_and_may_stand_alone() -> None:
    headers = {"server-timing": "queue;dur=1, forward;dur=2", "x-queue-time": "0.5", "x-total-time": "0.75"}
    assert server_stages(headers) == {"queue": 0.5, "forward": 0.002, "server": 0.75}
    assert server_stages({"x-inference-time": "0.25"}) == {"inference": 0.25}
    assert server_stages({"x-queue-time": "nan", "x-total-time": ""}) == {}

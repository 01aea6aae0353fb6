"""The times of stages in one header."""

from __future__ import annotations

import pytest

from xpeft_server.api.tracing.server_timing import server_timing
from xpeft_server.engine.requests import Stage


@pytest.mark.parametrize(
    ("stages", "header"),
    [
        ([Stage("queue", 1.0, 1.5)], b"queue;dur=500.000"),
        ([Stage("forward", 1.0, 2.0), Stage("forward", 5.0, 5.5)], b"forward;dur=1500.000"),
        ([Stage("decode", 2.0, 4.0), Stage("decode", 1.0, 3.0)], b"decode;dur=3000.000"),
        ([Stage("decode", 1.0, 9.0), Stage("decode", 2.0, 3.0)], b"decode;dur=8000.000"),
        ([Stage("store", 1.0, 1.25), Stage("queue", 1.0, 2.0), Stage("store", 1.125, 1.5)],
         b"store;dur=500.000, queue;dur=1000.000"),
    ],
    ids=["one", "one after the other", "overlapping", "one within the other", "two kinds"],
)  # fmt: skip
def test_a_kind_of_stage_counts_with_the_time_in_which_one_was_going_on(stages: list[Stage], header: bytes) -> None:
    assert server_timing(stages) == header

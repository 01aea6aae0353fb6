from __future__ import annotations

from contextlib import ExitStack

import pytest

from xpeft_server.engine.backlog import _AT_LEAST, Backlog
from xpeft_server.engine.errors import Overloaded
from xpeft_server.engine.metrics import Metrics


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(2.0, least=100, metrics=Metrics())


def observe(backlog: Backlog, tokens: int, seconds: float) -> None:
    for _ in range(_AT_LEAST):
        backlog.observe(tokens, seconds)


def test_nothing_is_refused_before_the_pace_is_known(backlog: Backlog) -> None:
    for _ in range(_AT_LEAST - 1):
        backlog.observe(1, 1.0)
    with backlog.waiting(1 << 20), backlog.waiting(1 << 20):
        assert backlog.tokens == 2 << 20
    assert backlog.tokens == 0


def test_more_than_the_device_does_in_that_time_is_refused(backlog: Backlog) -> None:
    observe(backlog, 500, 1.0)
    with backlog.waiting(900):
        with pytest.raises(Overloaded, match="900 tokens are waiting, and 101 more would take longer than 2 s"):
            ExitStack().enter_context(backlog.waiting(101))
        with backlog.waiting(100):
            pass
    assert backlog._refused._value.get() == 1


def test_a_request_is_let_in_whole_when_nothing_else_waits(backlog: Backlog) -> None:
    observe(backlog, 500, 1.0)
    with backlog.waiting(50_000):
        assert backlog.tokens == 50_000


def test_a_slow_device_still_has_something_waiting(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0)
    with backlog.waiting(60), backlog.waiting(40), pytest.raises(Overloaded):
        ExitStack().enter_context(backlog.waiting(1))


def test_the_pace_is_that_of_the_last_batches(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0)
    for _ in range(100):
        backlog.observe(1000, 1.0)
    with backlog.waiting(1000), backlog.waiting(1000), pytest.raises(Overloaded):
        ExitStack().enter_context(backlog.waiting(1))

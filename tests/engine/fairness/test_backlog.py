from __future__ import annotations

import pytest

from xpeft_server.engine.fairness.backlog import _AT_LEAST, Backlog
from xpeft_server.tenant_limits import ONE_TENANT


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(2.0, least=100, limits=ONE_TENANT)


def observe(backlog: Backlog, tokens: int, seconds: float, batches: int = _AT_LEAST) -> None:
    for _ in range(batches):
        backlog.observe(tokens, seconds)


def test_nothing_is_bounded_before_the_pace_is_known(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0, _AT_LEAST - 1)
    assert backlog.room.most is None
    observe(backlog, 1, 1.0, 1)
    assert backlog.room.most is not None


def test_as_much_may_wait_as_the_device_does_in_that_time(backlog: Backlog) -> None:
    observe(backlog, 500, 0.5)
    assert backlog.room.most == 2000


def test_a_slow_device_still_has_something_waiting(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0)
    assert backlog.room.most == 100


def test_the_pace_is_that_of_the_last_batches(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0)
    observe(backlog, 1000, 1.0, 100)
    assert backlog.room.most == 2000

from __future__ import annotations

from contextlib import ExitStack

import pytest

from xpeft_server.engine.backlog import _AT_LEAST, Backlog
from xpeft_server.engine.errors import Overloaded
from xpeft_server.engine.metrics import Metrics
from xpeft_server.tenant_limits import ONE_TENANT, TenantTable


@pytest.fixture
def backlog() -> Backlog:
    """Of one tenant."""
    return Backlog(2.0, least=100, limits=ONE_TENANT, metrics=Metrics())


@pytest.fixture
def shared() -> Backlog:
    """Room for 1000 tokens, of which a tenant may hold half of what others leave."""
    backlog = Backlog(2.0, least=100, limits=TenantTable(), metrics=Metrics())
    observe(backlog, 500, 1.0)
    return backlog


def observe(backlog: Backlog, tokens: int, seconds: float) -> None:
    for _ in range(_AT_LEAST):
        backlog.observe(tokens, seconds)


def refused(backlog: Backlog, tenant: str, tokens: int) -> bool:
    try:
        with backlog.waiting(tenant, tokens):
            return False
    except Overloaded:
        return True


def test_nothing_is_refused_before_the_pace_is_known(backlog: Backlog) -> None:
    for _ in range(_AT_LEAST - 1):
        backlog.observe(1, 1.0)
    with backlog.waiting("a", 1 << 20), backlog.waiting("a", 1 << 20):
        assert backlog.tokens == 2 << 20
    assert backlog.tokens == 0


def test_more_than_the_device_does_in_that_time_is_refused(backlog: Backlog) -> None:
    observe(backlog, 500, 1.0)
    with backlog.waiting("a", 900):
        with pytest.raises(Overloaded, match="900 tokens are waiting, 900 of them this tenant's: 101 more"):
            ExitStack().enter_context(backlog.waiting("a", 101))
        assert not refused(backlog, "a", 100)
    assert backlog._refused._value.get() == 1


def test_a_request_is_let_in_whole_when_nothing_else_waits(backlog: Backlog) -> None:
    observe(backlog, 500, 1.0)
    with backlog.waiting("a", 50_000):
        assert backlog.tokens == 50_000


def test_a_slow_device_still_has_something_waiting(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0)
    with backlog.waiting("a", 60), backlog.waiting("a", 40):
        assert refused(backlog, "a", 1)


def test_the_pace_is_that_of_the_last_batches(backlog: Backlog) -> None:
    observe(backlog, 1, 1.0)
    for _ in range(100):
        backlog.observe(1000, 1.0)
    with backlog.waiting("a", 1000), backlog.waiting("a", 1000):
        assert refused(backlog, "a", 1)


def test_a_tenant_that_floods_leaves_room_for_every_other(shared: Backlog) -> None:
    with shared.waiting("loud", 500):
        assert refused(shared, "loud", 1)
        with shared.waiting("quiet", 100):
            assert not refused(shared, "quiet", 100)
            assert refused(shared, "quiet", 200)
            assert not refused(shared, "third", 300)


def test_who_has_gone_is_forgotten(shared: Backlog) -> None:
    with shared.waiting("a", 5), shared.waiting("b", 5):
        assert set(shared._mine) == {"a", "b"}
    assert (shared.tokens, dict(shared._mine)) == (0, {})

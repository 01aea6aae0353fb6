from __future__ import annotations

import pytest

from xpeft_server.engine.errors import LimitReached, Overloaded
from xpeft_server.engine.fairness.room import Room
from xpeft_server.tenant_limits import ONE_TENANT, TenantTable

HALVES = TenantTable()  # a tenant may hold half of what others leave


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_reason() -> None:
    room = Room("texts", 100, ONE_TENANT, reason="queue_seconds")
    room.take("a", 90)
    room.check("a", 10)
    with pytest.raises(Overloaded, match="90 texts are waiting; with 11 more there would be more than 100") as error:
        room.check("b", 11)
    assert error.value.reason == "queue_seconds"


def test_anything_is_let_in_while_nothing_is_there() -> None:
    room = Room("texts", 100, HALVES)
    room.check("a", 5000)
    room.take("a", 5000)
    with pytest.raises(Overloaded):
        room.check("b", 1)


def test_without_a_bound_everything_fits() -> None:
    room = Room("texts", None, HALVES)
    room.take("a", 1 << 30)
    room.check("a", 1 << 30)


def test_a_first_one_that_does_not_fit_is_let_in_only_where_it_may_come_whole() -> None:
    strict, whole = Room("tokens", 100, HALVES), Room("tokens", 100, HALVES, whole=True)
    for room in (strict, whole):
        room.take("a", 50)
    with pytest.raises(Overloaded):
        strict.check("b", 500)
    whole.check("b", 500)
    whole.take("b", 500)
    with pytest.raises(Overloaded):
        whole.check("c", 1)


def test_a_tenant_that_floods_leaves_room_for_every_other() -> None:
    room = Room("tokens", 1000, HALVES)
    room.take("loud", 500)
    with pytest.raises(LimitReached, match="500 tokens of this tenant are waiting") as error:
        room.check("loud", 1)
    assert error.value.reason == "queue_share"
    room.take("quiet", 100)
    room.check("quiet", 150)
    with pytest.raises(LimitReached, match="share of 250"):
        room.check("quiet", 151)
    room.check("third", 400)


@pytest.mark.parametrize("tenants", [1, 2, 5])
def test_a_few_tenants_that_flood_are_refused_for_their_shares_and_never_for_want_of_room(tenants: int) -> None:
    room = Room("tokens", 600, HALVES)
    waiting = [f"tenant{number}" for number in range(tenants)]
    reasons = set()
    while waiting:
        try:
            room.check(waiting[0], 1)
        except Overloaded as error:
            reasons.add(error.reason)
            waiting.pop(0)
        else:
            room.take(waiting[0], 1)
            waiting.append(waiting.pop(0))
    assert reasons == {"queue_share"}
    assert room.taken == pytest.approx(600 * tenants / (tenants + 1), abs=tenants)


def test_who_has_gone_is_forgotten() -> None:
    room = Room("tokens", 100, HALVES)
    for tenant in "ab":
        room.take(tenant, 5)
        room.take(tenant, 1)
    room.leave("a", 5)
    assert (room.taken, dict(room._mine)) == (7, {"a": 1, "b": 6})
    room.leave("a", 1)
    room.leave("b", 6)
    assert (room.taken, dict(room._mine)) == (0, {})

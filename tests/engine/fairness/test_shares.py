from __future__ import annotations

import pytest

from xpeft_server.engine.fairness.shares import HALF_LIFE, Shares
from xpeft_server.tenant_limits import ONE_TENANT, TenantLimits, TenantTable


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_tenant_alone_is_never_ahead(clock: Clock) -> None:
    shares = Shares(ONE_TENANT, clock)
    assert not shares.is_ahead("a")
    shares.charge("a", 1_000_000)
    assert not shares.is_ahead("a")


def test_tenants_who_share_evenly_are_not_ahead(clock: Clock) -> None:
    shares = Shares(ONE_TENANT, clock)
    for number in range(100):
        clock.now += 0.1
        for tenant in "abc":
            shares.charge(tenant, 512)
            assert number < 3 or not any(shares.is_ahead(each) for each in "abc")


@pytest.mark.parametrize(("others", "limit"), [(1, 0.625), (4, 0.25), (9, 0.125)])
def test_a_quarter_more_than_a_share_is_not_yet_too_much(clock: Clock, others: int, limit: float) -> None:
    for part, ahead in ((limit - 0.01, False), (limit + 0.01, True)):
        shares = Shares(ONE_TENANT, clock)
        shares.charge("loud", round(100_000 * part))
        for other in range(others):
            shares.charge(f"q{other}", round(100_000 * (1 - part) / others))
        assert shares.is_ahead("loud") is ahead
        assert not shares.is_ahead("q0")


def test_who_only_waits_has_a_share(clock: Clock) -> None:
    shares = Shares(ONE_TENANT, clock)
    shares.charge("loud", 1000)
    shares.enter(["newcomer"])
    assert shares.is_ahead("loud")
    assert not shares.is_ahead("newcomer")


def test_a_heavy_tenant_may_have_more(clock: Clock) -> None:
    shares = Shares(TenantTable(tenants={"paid": TenantLimits(weight=9.0)}), clock)
    shares.charge("paid", 900)
    shares.charge("free", 100)
    assert not shares.is_ahead("paid")
    shares.charge("free", 500)
    assert shares.is_ahead("free")


def test_what_was_long_ago_counts_for_little(clock: Clock) -> None:
    shares = Shares(ONE_TENANT, clock)
    shares.charge("loud", 10_000)
    shares.charge("quiet", 100)
    assert shares.is_ahead("loud")
    clock.now += 5 * HALF_LIFE
    shares.charge("quiet", 300)
    assert not shares.is_ahead("loud")


def test_tokens_lose_half_their_weight_in_a_half_life_whenever_they_are_looked_at(clock: Clock) -> None:
    often, seldom = Shares(ONE_TENANT, clock), Shares(ONE_TENANT, clock)
    for shares in (often, seldom):
        shares.charge("loud", 1 << 20)
    for _ in range(40):
        clock.now += HALF_LIFE / 10
        often.charge("loud", 0)
    # Four half-lives: a sixteenth is left of the loud one's, and 0.625 of all is the limit for two.
    for shares in (often, seldom):
        shares.charge("quiet", 0)
        total = (1 << 16) / 0.625
        shares.charge("quiet", round(total - (1 << 16)) - 200)
        assert shares.is_ahead("loud")
        shares.charge("quiet", 2000)
        assert not shares.is_ahead("loud")


def test_tokens_that_are_refunded_count_for_nothing_and_never_for_less(clock: Clock) -> None:
    shares = Shares(ONE_TENANT, clock)
    shares.charge("a", 100)
    shares.charge("b", 1100)
    shares.refund("b", 1000, clock.now)
    assert shares.part("b") == pytest.approx(0.5)
    shares.refund("b", 1000, clock.now)
    assert (shares.part("a"), shares.part("b")) == (1, 0)
    shares.refund("nobody", 10, clock.now)
    assert shares.part("a") == 1


@pytest.mark.parametrize("later", [0.5, 1.5])
def test_a_late_refund_is_of_what_the_tokens_count_by_then(clock: Clock, later: float) -> None:
    shares = Shares(ONE_TENANT, clock)
    charged = clock.now
    shares.charge("a", 800)
    clock.now += later * HALF_LIFE
    shares.charge("b", 100)
    shares.charge("a", 100)
    shares.refund("a", 800, charged)
    assert shares.part("a") == pytest.approx(0.5)


def test_who_is_gone_is_forgotten(clock: Clock) -> None:
    shares = Shares(ONE_TENANT, clock)
    for number in range(1000):
        shares.charge(f"t{number}", 64)
    clock.now += 10 * HALF_LIFE
    shares.charge("here", 64)
    assert set(shares._used) == {"here"}

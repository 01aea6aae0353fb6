from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from xpeft_server.engine.errors import LimitReached, Overloaded
from xpeft_server.engine.fairness.backlog import Backlog
from xpeft_server.engine.fairness.permits import Permit, Permits
from xpeft_server.tenant_limits import ONE_TENANT, LimitsOfTenants, TenantLimits, TenantTable

Enter = Callable[[AbstractContextManager[Permit]], Permit]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def enter() -> Iterator[Enter]:
    """Lets a request in, and out at the end of the test."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def make(clock: Clock) -> Callable[..., Permits]:
    def permits(*, texts: int = 100, tokens: int = 10_000, limits: LimitsOfTenants = ONE_TENANT) -> Permits:
        backlog = Backlog(1.0, least=100, limits=limits)
        return Permits(texts=texts, tokens=tokens, backlog=backlog, limits=limits, clock=clock)

    return permits


def for_all(**limits: Any) -> TenantTable:
    return TenantTable(TenantLimits(**limits))


def test_what_passes_the_limit_is_refused_and_names_both_numbers(make: Any, enter: Enter) -> None:
    permits = make(texts=3)
    enter(permits.admitted("a", 2))
    with pytest.raises(Overloaded, match="2 texts are waiting; with 2 more there would be more than 3") as error:
        enter(permits.admitted("b", 2))
    enter(permits.admitted("b", 1))
    assert (permits.texts, error.value.reason) == (3, "queue")


def test_tokens_are_bounded_apart_from_texts(make: Any, enter: Enter) -> None:
    permits = make(tokens=100)
    enter(permits.admitted("a", 1)).admit_tokens(90)
    second = enter(permits.admitted("a", 1))
    with pytest.raises(Overloaded, match="90 tokens"):
        second.admit_tokens(11)
    second.admit_tokens(10)


def test_a_request_larger_than_the_limit_is_let_in_when_it_is_alone(make: Any, enter: Enter) -> None:
    permits = make(tokens=100)
    enter(permits.admitted("a", 1)).admit_tokens(500)
    with pytest.raises(Overloaded):
        enter(permits.admitted("b", 1)).admit_tokens(1)


def test_who_leaves_takes_everything_along(make: Any) -> None:
    permits = make(texts=2, tokens=10)
    for _ in range(3):
        with permits.admitted("a", 1) as permit, permits.admitted("b", 1) as other:
            permit.admit_tokens(10)
            assert (permits.texts, permits.tokens) == (2, 10)
            with pytest.raises(Overloaded):
                other.admit_tokens(1)
    assert (permits.texts, permits.tokens) == (0, 0)


def test_texts_that_share_a_permit_are_one_request(make: Any, clock: Clock) -> None:
    permits = make(texts=8, limits=for_all(requests_per_second=1, concurrent_requests=1, queue_share=0.5))
    for _ in range(2):
        with ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(permits.shared("a", 8, "first"))
            assert permits.texts == 8
            with pytest.raises(Overloaded, match="8 texts are waiting"):
                stack.enter_context(permits.shared("b", 1, "first"))
        assert permits.texts == 0
        clock.now += 1


def test_a_shared_permit_is_left_when_the_last_one_goes(make: Any, enter: Enter) -> None:
    permits = make(limits=for_all(concurrent_requests=1))
    first = permits.shared("a", 2, "x")
    first.__enter__().admit_tokens(3)
    second = permits.shared("a", 2, "x")
    second.__enter__().admit_tokens(4)
    first.__exit__(None, None, None)
    assert (permits.texts, permits.tokens) == (2, 7)
    with pytest.raises(LimitReached):
        enter(permits.shared("a", 1, "y"))
    second.__exit__(None, None, None)
    assert (permits.texts, permits.tokens, permits._shared) == (0, 0, {})
    enter(permits.shared("a", 2, "x")).admit_tokens(5)
    assert (permits.texts, permits.tokens) == (2, 5)


def test_a_shared_permit_that_is_refused_leaves_nothing(make: Any, enter: Enter) -> None:
    permits = make(texts=3)
    enter(permits.admitted("a", 2))
    for _ in range(2):
        with pytest.raises(Overloaded, match="2 texts are waiting; with 2 more"):
            enter(permits.shared("a", 2, "x"))
    assert (permits.texts, permits._shared) == (2, {})


def test_tokens_that_come_one_after_the_other_are_checked_as_one_request(make: Any, enter: Enter) -> None:
    permits = make(tokens=100, limits=for_all(queue_share=0.5))
    for _ in range(3):
        enter(permits.shared("a", 3, "x")).admit_tokens(40)
    assert permits.tokens == 120
    late = enter(permits.admitted("b", 1))
    with pytest.raises(Overloaded, match="120 tokens"):
        late.admit_tokens(1)


def test_tokens_that_come_later_are_checked_with_those_that_the_request_has_which_stay_if_they_are_refused(
    make: Any, enter: Enter
) -> None:
    permits = make(tokens=100)
    enter(permits.admitted("b", 1)).admit_tokens(30)
    first = enter(permits.admitted("a", 1))
    first.admit_tokens(40)
    with pytest.raises(Overloaded, match="with 90 more"):
        first.admit_tokens(50)
    assert permits.tokens == 70
    first.admit_tokens(30)
    assert permits.tokens == 100


def test_a_tenant_holds_only_its_share_of_what_others_leave(make: Any, enter: Enter) -> None:
    permits = make(texts=100, limits=for_all(queue_share=0.5))
    enter(permits.admitted("loud", 50))
    with pytest.raises(
        LimitReached, match="50 texts of this tenant are waiting; with 1 more it would pass its share of 50"
    ):
        enter(permits.admitted("loud", 1))
    enter(permits.admitted("second", 20))
    enter(permits.admitted("second", 5))
    with pytest.raises(LimitReached, match="share of 25") as error:
        enter(permits.admitted("second", 1))
    assert error.value.reason == "queue_share"
    # However many there are, a tenant that has nothing inside finds room.
    enter(permits.admitted("third", 12))
    assert permits.texts == 87


def test_a_share_is_of_tokens_too(make: Any, enter: Enter) -> None:
    permits = make(tokens=1000, limits=for_all(queue_share=0.25))
    enter(permits.admitted("a", 1)).admit_tokens(250)
    late = enter(permits.admitted("a", 1))
    with pytest.raises(LimitReached, match="250 tokens of this tenant"):
        late.admit_tokens(1)


def test_the_first_request_of_a_tenant_may_be_larger_than_its_share(make: Any, enter: Enter) -> None:
    permits = make(texts=100, limits=for_all(queue_share=0.1))
    enter(permits.admitted("a", 60))
    enter(permits.admitted("b", 40))
    assert permits.texts == 100


def test_requests_in_flight_are_counted_by_tenant(make: Any, enter: Enter) -> None:
    permits = make(limits=for_all(concurrent_requests=2))
    for tenant in "aabb":
        enter(permits.admitted(tenant, 1))
    with pytest.raises(LimitReached, match="2 requests of this tenant are open, 2 may be") as error:
        enter(permits.admitted("a", 1))
    with permits.admitted("c", 1):
        pass
    assert error.value.reason == "concurrency"


def test_a_tenant_that_may_send_nothing_is_let_in_with_nothing(make: Any, enter: Enter) -> None:
    permits = make(limits=for_all(concurrent_requests=0))
    with pytest.raises(LimitReached):
        enter(permits.admitted("a", 1))


def test_a_rate_is_kept_and_says_when_to_come_again(make: Any, enter: Enter, clock: Clock) -> None:
    permits = make(limits=for_all(requests_per_second=2))
    for _ in range(2):
        enter(permits.admitted("a", 1))
    with pytest.raises(LimitReached, match="2 requests a second") as error:
        enter(permits.admitted("a", 1))
    assert (error.value.reason, error.value.retry_after) == ("request_rate", pytest.approx(0.5))
    enter(permits.admitted("b", 1))
    clock.now = 0.5
    enter(permits.admitted("a", 1))


def test_a_refused_request_costs_nothing(make: Any, enter: Enter, clock: Clock) -> None:
    permits = make(limits=for_all(requests_per_second=1, concurrent_requests=1))
    with permits.admitted("a", 1):
        clock.now = 1.0
        for _ in range(5):
            with pytest.raises(LimitReached):
                enter(permits.admitted("a", 1))
    enter(permits.admitted("a", 1))


def test_tokens_of_prompts_and_answers_count_against_one_rate(make: Any, enter: Enter, clock: Clock) -> None:
    permits = make(limits=for_all(tokens_per_second=100))
    with permits.admitted("a", 1) as permit:
        permit.admit_tokens(80)
        permit.spend(220)
    with pytest.raises(LimitReached, match="100 tokens a second") as error:
        enter(permits.admitted("a", 1))
    assert error.value.retry_after == pytest.approx(2.0)
    clock.now = 2.1
    enter(permits.admitted("a", 1))


def test_limits_that_change_hold_from_the_next_request_on(make: Any, enter: Enter) -> None:
    class Changing:
        limits = TenantLimits()

        def of(self, tenant: str) -> TenantLimits:
            return self.limits

    changing = Changing()
    permits = make(limits=changing)
    for _ in range(10):
        enter(permits.admitted("a", 1))
    changing.limits = TenantLimits(concurrent_requests=3)
    with pytest.raises(LimitReached):
        enter(permits.admitted("a", 1))


def test_a_hundred_thousand_tenants_that_were_here_once_are_forgotten(make: Any, clock: Clock) -> None:
    permits = make(limits=for_all(requests_per_second=10))
    for number in range(100_000):
        clock.now += 0.001
        with permits.admitted(f"t{number}", 1):
            pass
    assert len(permits._accounts) < 3000


def test_what_waits_to_be_computed_is_bounded_and_counted_apart(make: Any, enter: Enter) -> None:
    permits = make()
    permits.waiting.most = 100
    first = enter(permits.admitted("a", 1))
    first.admit_tokens(80)
    with first.waiting():
        late = enter(permits.admitted("a", 1))
        late.admit_tokens(21)
        refused = pytest.raises(Overloaded, match=r"80 tokens to compute \(at most 1 s of it\) are waiting")
        with refused as error, late.waiting():
            pass
        assert error.value.reason == "queue_seconds"
        permits.check_backlog("a")
        with enter(permits.admitted("b", 1)).waiting():
            pass
    permits.check_backlog("a")
    with late.waiting():
        assert permits.waiting.taken == 21

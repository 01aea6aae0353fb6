from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_server.engine.fairness.batch_policy import ALONE, BESIDE
from xpeft_server.engine.fairness.queue import FairQueue
from xpeft_server.engine.fairness.shares import Shares
from xpeft_server.engine.ticket import Entry
from xpeft_server.tenant_limits import ONE_TENANT, TenantLimits, TenantTable


class Waiter:
    """Stands in for a ticket: what the queue looks at."""

    def __init__(self, tenant: str, *lengths: int) -> None:
        self.tenant = tenant
        self.texts = [range(length) for length in lengths]
        self.attempt = 1
        self.gone = False
        self.answer = SimpleNamespace(done=lambda: self.gone)

    def entries(self) -> list[Entry]:
        ticket: Any = self
        return [Entry(ticket, place, 1) for place in range(len(self.texts))]


def tenants(batch: list[Entry]) -> list[str]:
    return [entry.ticket.tenant for entry in batch]


def test_a_batch_takes_what_is_there_up_to_the_token_budget() -> None:
    queue = FairQueue(Shares(ONE_TENANT), quantum=100)
    queue.put(Waiter("a", 10, 10, 10, 10).entries())
    assert [entry.place for entry in queue.take(30)] == [0, 1, 2]
    assert [entry.place for entry in queue.take(30)] == [3]


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    queue = FairQueue(Shares(ONE_TENANT), quantum=16)
    queue.put(Waiter("a", 500, 3).entries())
    assert len(queue.take(64)) == 1
    assert len(queue.take(64)) == 1


def test_a_tenant_with_ten_thousand_texts_does_not_hold_up_another_with_one() -> None:
    queue = FairQueue(Shares(ONE_TENANT), quantum=64)
    queue.put(Waiter("loud", *[16] * 10_000).entries())
    queue.put(Waiter("quiet", 16).entries())
    assert "quiet" in tenants(queue.take(128))


def test_two_tenants_who_both_wait_get_the_same_number_of_tokens() -> None:
    queue = FairQueue(Shares(TenantTable()), quantum=64)
    queue.put(Waiter("short", *[8] * 2000).entries())
    queue.put(Waiter("long", *[64] * 2000).entries())
    tokens = {"short": 0, "long": 0}
    for _ in range(50):
        for entry in queue.take(256):
            tokens[entry.ticket.tenant] += len(entry.text)
    assert abs(tokens["short"] - tokens["long"]) <= 256


def test_a_cancelled_request_never_reaches_the_device() -> None:
    queue = FairQueue(Shares(ONE_TENANT))
    gone, here = Waiter("a", 5, 5), Waiter("a", 7)
    queue.put(gone.entries() + here.entries())
    gone.gone = True
    assert [entry.ticket for entry in queue.take(100)] == [here]


def test_texts_of_an_earlier_attempt_are_dropped() -> None:
    queue = FairQueue(Shares(ONE_TENANT))
    waiter = Waiter("a", 5)
    queue.put(waiter.entries())
    waiter.attempt = 2
    other = Waiter("a", 6)
    queue.put(other.entries())
    assert [entry.ticket for entry in queue.take(100)] == [other]


def test_what_is_put_in_front_keeps_its_order_and_comes_first() -> None:
    queue = FairQueue(Shares(ONE_TENANT))
    queue.put(Waiter("a", 5).entries())
    back = Waiter("a", 1, 2, 3)
    queue.put(back.entries(), front=True)
    assert [len(entry.text) for entry in queue.take(100)] == [1, 2, 3, 5]


def test_take_waits_for_texts_and_ends_when_the_queue_is_closed() -> None:
    queue = FairQueue(Shares(ONE_TENANT))
    batches: list[list[Entry]] = []
    taker = threading.Thread(target=lambda: [batches.append(queue.take(10)), batches.append(queue.take(10))])
    taker.start()
    queue.put(Waiter("a", 4).entries())
    queue.close()
    taker.join(10)
    assert not taker.is_alive()
    assert [len(batch) for batch in batches] in ([1, 0], [0, 0])


def test_a_tenant_of_twice_the_weight_gets_twice_the_tokens() -> None:
    table = TenantTable(tenants={"heavy": TenantLimits(weight=2.0)})
    queue = FairQueue(Shares(table), quantum=64)
    for tenant in ("heavy", "light"):
        queue.put(Waiter(tenant, *[8] * 4000).entries())
    counts = Counter(tenant for _ in range(30) for tenant in tenants(queue.take(768)))
    assert counts["heavy"] == pytest.approx(2 * counts["light"], rel=0.05)


def test_a_tenant_of_little_weight_gets_its_long_text_through_all_the_same() -> None:
    queue = FairQueue(Shares(TenantTable(TenantLimits(weight=0.01))), quantum=64)
    queue.put(Waiter("light", 500).entries())
    assert len(queue.take(1024)) == 1


def after_a_hog() -> FairQueue[Entry]:
    """A queue whose device had one tenant far ahead of four others."""
    shares = Shares(TenantTable(), clock=lambda: 0.0)
    for tenant, tokens in (("hog", 1000), ("q0", 100), ("q1", 100), ("q2", 100), ("q3", 100)):
        shares.charge(tenant, tokens)
    return FairQueue(shares, quantum=64)


def hog_and_quiet() -> FairQueue[Entry]:
    """As `after_a_hog`, and that tenant waits with plenty."""
    queue = after_a_hog()
    queue.put(Waiter("hog", *[16] * 1000).entries())
    return queue


def test_who_is_greedy_waits_while_anybody_else_does() -> None:
    queue = hog_and_quiet()
    queue.put(Waiter("q1", 16, 16).entries())
    queue.put(Waiter("newcomer", 16).entries())
    batch = tenants(queue.take(1024))
    assert sorted(batch[:3]) == ["newcomer", "q1", "q1"]
    assert set(batch[3:]) == {"hog"}
    assert set(tenants(queue.take(1024))) == {"hog"}


def test_who_is_greedy_gets_a_small_part_of_a_batch_where_batches_take_long() -> None:
    queue = hog_and_quiet()
    queue.observe(1024, 0.15, 1024)
    assert len(queue.take(1024)) * 16 == 1024 // ALONE[0]
    queue.put(Waiter("q1", 16).entries())
    assert Counter(tenants(queue.take(1024))) == {"q1": 1, "hog": 1024 // BESIDE[0] // 16}


def test_who_is_greedy_gets_all_that_a_quick_device_does_in_a_short_time() -> None:
    queue = hog_and_quiet()
    queue.observe(1024, 0.001, 1024)
    assert len(queue.take(1024)) * 16 == 1024


def test_who_is_greedy_gets_no_more_than_the_others_leave_however_quick_the_device_is() -> None:
    queue = hog_and_quiet()
    queue.observe(100_000, 0.1, 1024)
    for number in range(60):
        queue.put(Waiter(f"quiet{number}", 16).entries())
    batch = queue.take(1024)
    assert Counter(tenants(batch))["hog"] == 4
    assert sum(entry.tokens for entry in batch) == 1024


def test_who_withdrew_most_of_what_it_had_waiting_is_not_greedy() -> None:
    queue = after_a_hog()
    gone, here = Waiter("hog", *[16] * 100), Waiter("hog", *[16] * 20)
    queue.put(gone.entries() + here.entries())
    gone.gone = True
    # What was withdrawn counts until a batch comes upon it.
    assert len(queue.take(1024)) * 16 == 1024 // ALONE[0]
    assert len(queue.take(1024)) == 20 - 8


def test_a_small_batch_tells_nothing_of_the_pace() -> None:
    queue = hog_and_quiet()
    queue.observe(1024, 0.001, 1024)
    for _ in range(1000):
        queue.observe(16, 1.0, 1024)
    assert len(queue.take(1024)) * 16 == 1024


def test_a_long_text_of_who_is_greedy_waits_until_nobody_else_does() -> None:
    shares = Shares(TenantTable(), clock=lambda: 0.0)
    shares.charge("hog", 1000)
    queue: FairQueue[Entry] = FairQueue(shares)
    queue.put(Waiter("hog", 500, 500).entries())
    queue.put(Waiter("q1", 16).entries())
    assert tenants(queue.take(1024)) == ["q1"]
    assert tenants(queue.take(1024)) == ["hog"]


def test_who_is_ahead_with_little_waiting_is_not_held_back() -> None:
    queue = hog_and_quiet()
    while queue:
        queue.take(1024)
    queue.put(Waiter("hog", 16, 16).entries())
    queue.put(Waiter("q1", 16).entries())
    assert sorted(tenants(queue.take(1024))) == ["hog", "hog", "q1"]


@pytest.mark.parametrize(("quiet", "busy"), [(10, 17), (20, 35), (60, 1024 // 3 // 4)])
def test_who_is_ahead_goes_on_with_little_more_than_the_part_that_it_had(quiet: int, busy: int) -> None:
    shares = Shares(TenantTable(), clock=lambda: 0.0)
    for tenant, tokens in (("busy", 500), ("q0", 250), ("q1", 250)):
        shares.charge(tenant, tokens)
    queue: FairQueue[Entry] = FairQueue(shares)
    queue.put(Waiter("busy", *[4] * 190).entries())
    queue.put(Waiter("q0", *[4] * quiet).entries())
    assert Counter(tenants(queue.take(1024))) == {"q0": quiet, "busy": busy}


def bulk_beside(*others: str, texts: int = 1000, quantum: int = 512) -> FairQueue[Entry]:
    """``others`` had as much as ``bulk``, which has plenty waiting."""
    shares = Shares(TenantTable(), clock=lambda: 0.0)
    for tenant in ("bulk", *others):
        shares.charge(tenant, 1000)
    queue: FairQueue[Entry] = FairQueue(shares, quantum=quantum)
    queue.put(Waiter("bulk", *[16] * texts).entries())
    return queue


@pytest.mark.parametrize(("others", "texts"), [(["q0"], 25), (["q0", "q1"], 12), ([f"q{n}" for n in range(6)], 4)])
def test_who_has_plenty_waiting_gets_a_part_of_a_batch_that_keeps_it_at_its_share(
    others: list[str], texts: int
) -> None:
    queue = bulk_beside(*others)
    queue.put(Waiter("q0", *[16] * 20).entries())
    assert Counter(tenants(queue.take(1024))) == {"q0": 20, "bulk": texts}


@pytest.mark.parametrize(("others", "part"), [(["q0"], 2), (["q0", "q1"], 3), ([f"q{n}" for n in range(6)], 4)])
def test_who_has_plenty_waiting_gets_a_quarter_of_a_batch_or_its_share_while_others_may_come(
    others: list[str], part: int
) -> None:
    queue = bulk_beside(*others)
    assert len(queue.take(1024)) == 1024 // part // 16


def test_who_had_enough_in_many_batches_has_saved_nothing_up() -> None:
    others = [f"q{number}" for number in range(6)]
    queue = bulk_beside(*others, texts=132, quantum=64)
    for _ in range(100):
        for tenant in others:
            queue.put(Waiter(tenant, 16).entries())
        assert tenants(queue.take(1024)).count("bulk") == 1
    # All wait with half a batch now, which is not plenty.
    for tenant in others[:2]:
        queue.put(Waiter(tenant, *[16] * 32).entries())
    had = Counter(tenants(queue.take(1024)))
    assert had.keys() == {"bulk", "q0", "q1"}
    assert max(had.values()) - min(had.values()) <= 64 // 16


def test_who_is_ahead_is_taken_after_the_others_where_nobody_counts_tokens() -> None:
    queue = hog_and_quiet()
    queue.put(Waiter("q1", 16).entries())
    taken = tenants(queue.offer(lambda entry: True))
    assert taken[0] == "q1"
    assert taken.count("hog") == 1000


def test_who_is_ahead_takes_no_room_that_another_waits_for() -> None:
    queue = hog_and_quiet()
    queue.put(Waiter("q1", 16, 500).entries())
    assert tenants(queue.offer(lambda entry: entry.tokens < 100)) == ["q1"]


def test_the_part_of_a_batch_holds_for_a_tenant_of_little_weight_that_has_many_turns() -> None:
    table = TenantTable(tenants={"light": TenantLimits(weight=0.1)})
    shares = Shares(table, clock=lambda: 0.0)
    shares.charge("q0", 1000)
    queue: FairQueue[Entry] = FairQueue(shares)
    queue.put(Waiter("light", *[16] * 1000).entries())
    queue.put(Waiter("q0", *[16] * 20).entries())
    assert Counter(tenants(queue.take(1024))) == {"light": 2, "q0": 20}

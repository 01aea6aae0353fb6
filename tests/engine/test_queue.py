from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from xpeft_server.engine.queue import FairQueue
from xpeft_server.engine.ticket import Entry


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
    queue = FairQueue(quantum=100)
    queue.put(Waiter("a", 10, 10, 10, 10).entries())
    assert [entry.place for entry in queue.take(30)] == [0, 1, 2]
    assert [entry.place for entry in queue.take(30)] == [3]


def test_a_text_longer_than_the_budget_goes_alone() -> None:
    queue = FairQueue(quantum=16)
    queue.put(Waiter("a", 500, 3).entries())
    assert len(queue.take(64)) == 1
    assert len(queue.take(64)) == 1


def test_a_tenant_with_ten_thousand_texts_does_not_hold_up_another_with_one() -> None:
    queue = FairQueue(quantum=64)
    queue.put(Waiter("loud", *[16] * 10_000).entries())
    queue.put(Waiter("quiet", 16).entries())
    assert "quiet" in tenants(queue.take(128))


def test_two_tenants_who_both_wait_get_the_same_number_of_tokens() -> None:
    queue = FairQueue(quantum=64)
    queue.put(Waiter("short", *[8] * 2000).entries())
    queue.put(Waiter("long", *[64] * 2000).entries())
    tokens = {"short": 0, "long": 0}
    for _ in range(50):
        for entry in queue.take(256):
            tokens[entry.ticket.tenant] += len(entry.text)
    assert abs(tokens["short"] - tokens["long"]) <= 256


def test_a_cancelled_request_never_reaches_the_device() -> None:
    queue = FairQueue()
    gone, here = Waiter("a", 5, 5), Waiter("a", 7)
    queue.put(gone.entries() + here.entries())
    gone.gone = True
    assert [entry.ticket for entry in queue.take(100)] == [here]


def test_texts_of_an_earlier_attempt_are_dropped() -> None:
    queue = FairQueue()
    waiter = Waiter("a", 5)
    queue.put(waiter.entries())
    waiter.attempt = 2
    other = Waiter("a", 6)
    queue.put(other.entries())
    assert [entry.ticket for entry in queue.take(100)] == [other]


def test_what_is_put_in_front_keeps_its_order_and_comes_first() -> None:
    queue = FairQueue()
    queue.put(Waiter("a", 5).entries())
    back = Waiter("a", 1, 2, 3)
    queue.put(back.entries(), front=True)
    assert [len(entry.text) for entry in queue.take(100)] == [1, 2, 3, 5]


def test_take_waits_for_texts_and_ends_when_the_queue_is_closed() -> None:
    queue = FairQueue()
    batches: list[list[Entry]] = []
    taker = threading.Thread(target=lambda: [batches.append(queue.take(10)), batches.append(queue.take(10))])
    taker.start()
    queue.put(Waiter("a", 4).entries())
    queue.close()
    taker.join(10)
    assert not taker.is_alive()
    assert [len(batch) for batch in batches] in ([1, 0], [0, 0])

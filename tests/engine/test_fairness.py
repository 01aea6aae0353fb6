"""What others notice of a greedy neighbour, on a device that takes its time by a formula: no clock, no noise."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from xpeft_server.engine.fairness.queue import FairQueue
from xpeft_server.engine.fairness.shares import Shares
from xpeft_server.tenant_limits import TenantLimits, TenantTable

TOKENS = 32
BUDGET = 1024
FLOAT32, BFLOAT16, ONE_THREAD = (0.009, 0.0043), (0.004, 0.0013), (0.010, 0.0085)
"""Seconds that a batch takes and that a text in it takes beside them, about those of MiniLM on two cores, and on one of
them in float32."""
TENANTS = 10
Rates = dict[str, float]
MOST_WAITING = 200  # texts of one tenant


@dataclass
class Text:
    tenant: str
    due: float
    tokens: int = TOKENS
    alive: bool = True


@dataclass
class Device:
    """Computes what a queue gives it; texts come at rates by tenant, a second."""

    times: tuple[float, float] = FLOAT32
    limits: TenantTable = field(default_factory=TenantTable)
    now: float = 0.0
    computed: list[tuple[str, float]] = field(default_factory=list)

    @property
    def capacity(self) -> float:
        """Texts a second, in full batches."""
        texts = BUDGET // TOKENS
        return texts / self.seconds(texts)

    def seconds(self, texts: float) -> float:
        a_batch, a_text = self.times
        return a_batch + texts * a_text

    def run(self, rates: dict[str, float], seconds: float, *, after: float = 0.0, before: Rates | None = None) -> None:
        """``seconds`` at these rates, behind ``after`` seconds at those of ``before``."""
        queue: FairQueue[Text] = FairQueue(Shares(self.limits, lambda: self.now))
        texts = self._arrivals(before or {}, 0.0, after) + self._arrivals(rates, after, after + seconds)
        due = iter(texts)
        coming = next(due, None)
        waiting: Counter[str] = Counter()
        while coming is not None or queue:
            if not queue and coming is not None:
                self.now = max(self.now, coming.due)
            while coming is not None and coming.due <= self.now:
                if waiting[coming.tenant] < MOST_WAITING:
                    waiting[coming.tenant] += 1
                    queue.put([coming])
                coming = next(due, None)
            if queue:
                batch = queue.take(BUDGET)
                tokens = sum(text.tokens for text in batch)
                seconds = self.seconds(tokens / TOKENS)
                queue.observe(tokens, seconds, BUDGET)
                self.now += seconds
                for text in batch:
                    waiting[text.tenant] -= 1
                    if text.due >= after:
                        self.computed.append((text.tenant, self.now - text.due))

    def p95(self, tenants: set[str]) -> float:
        return float(np.percentile([latency for tenant, latency in self.computed if tenant in tenants], 95))

    @staticmethod
    def _arrivals(rates: Rates, begin: float, end: float) -> list[Text]:
        """Of uneven lengths; a tenant's do not depend on what others ask for."""
        texts = []
        for tenant, rate in rates.items():
            rng = random.Random(f"{tenant} {begin}" if begin else tenant)
            texts += [
                Text(tenant, rng.uniform(begin, end), max(4, round(rng.gammavariate(4, TOKENS / 4))))
                for _ in range(round(rate * (end - begin)))
            ]
        return sorted(texts, key=lambda text: text.due)


def others() -> set[str]:
    return {f"t{number}" for number in range(1, TENANTS)}


@pytest.mark.parametrize("load", [0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("times", [FLOAT32, BFLOAT16])
def test_a_neighbour_with_ten_times_its_share_moves_the_p95_of_others_by_less_than_a_quarter(
    times: tuple[float, float], load: float
) -> None:
    quiet, greedy = Device(times), Device(times)
    share = load * quiet.capacity / TENANTS
    rates = {f"t{number}": share for number in range(TENANTS)}
    quiet.run(rates, 60)
    greedy.run({**rates, "t0": 10 * share}, 60)
    assert greedy.p95(others()) < 1.25 * quiet.p95(others())
    computed = Counter(tenant for tenant, _ in greedy.computed)
    assert all(computed[tenant] == round(60 * share) for tenant in others())
    assert computed["t0"] / 60 > share


def test_who_asks_for_much_while_there_is_room_is_served_at_once() -> None:
    device = Device()
    share = 0.3 * device.capacity / TENANTS
    device.run({**{f"t{number}": share for number in range(TENANTS)}, "t0": 10 * share}, 60)
    assert device.p95({"t0"}) < 1.5 * device.p95(others())


def test_a_tenant_alone_has_all_of_the_device() -> None:
    device = Device()
    device.run({"t0": 3 * device.capacity}, 20)
    assert len(device.computed) / device.now > 0.99 * device.capacity


def test_tenants_who_all_ask_for_too_much_get_parts_by_their_weights() -> None:
    device = Device(limits=TenantTable(tenants={"paid": TenantLimits(weight=3.0)}))
    device.run(dict.fromkeys(["paid", "a", "b"], 3 * device.capacity), 20)
    computed = Counter(tenant for tenant, latency in device.computed)
    assert computed["paid"] / computed["a"] == pytest.approx(3.0, rel=0.1)
    assert computed["a"] / computed["b"] == pytest.approx(1.0, rel=0.1)
    assert len(device.computed) / device.now > 0.95 * device.capacity


def test_many_tenants_who_all_ask_for_too_much_keep_the_device_busy() -> None:
    device = Device()
    device.run({f"t{number}": device.capacity / 2 for number in range(TENANTS)}, 20)
    computed = Counter(tenant for tenant, _ in device.computed)
    assert max(computed.values()) < 1.1 * min(computed.values())
    assert len(device.computed) / device.now > 0.95 * device.capacity


@pytest.mark.parametrize(("times", "most"), [(FLOAT32, 1.1), (BFLOAT16, 1.1), (ONE_THREAD, 1.5)])
def test_a_neighbour_that_begins_to_ask_for_ten_times_as_much_has_no_burst(
    times: tuple[float, float], most: float
) -> None:
    quiet, greedy = Device(times), Device(times)
    share = 0.6 * quiet.capacity / TENANTS
    rates = {f"t{number}": share for number in range(TENANTS)}
    quiet.run(rates, 8, after=8, before=rates)
    greedy.run({**rates, "t0": 10 * share}, 8, after=8, before=rates)
    assert greedy.p95(others()) < most * quiet.p95(others())


@pytest.mark.parametrize("part", [0.3, 0.5, 0.7])
def test_who_has_much_of_the_work_is_served_while_there_is_room(part: float) -> None:
    device = Device()
    load = 0.7 * device.capacity
    device.run({"t0": part * load, **dict.fromkeys(others(), (1 - part) * load / (TENANTS - 1))}, 60)
    assert device.p95({"t0"}) < 1.5 * device.p95(others())


@pytest.mark.parametrize("load", [0.7, 0.8])
def test_the_most_popular_of_many_tenants_is_not_held_back_while_there_is_room(load: float) -> None:
    popularity = [number**-1.1 for number in range(1, 33)]
    device = Device()
    device.run({f"t{n}": load * device.capacity * part / sum(popularity) for n, part in enumerate(popularity)}, 60)
    assert device.p95({"t0"}) < 1.4 * device.p95({f"t{number}" for number in range(1, 32)})

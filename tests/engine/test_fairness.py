"""What others notice of a greedy neighbour, on a device that takes its time by a formula: no clock, no noise."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest

from xpeft_server.engine.queue import FairQueue
from xpeft_server.engine.shares import Shares
from xpeft_server.tenant_limits import TenantLimits, TenantTable

TOKENS = 32
BUDGET = 1024
A_BATCH, A_TEXT = 0.002, 0.0044
"""Seconds, about those of MiniLM in float32 on two cores."""
CAPACITY = 0.95 / A_TEXT
TENANTS = 10
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

    limits: TenantTable = field(default_factory=TenantTable)
    now: float = 0.0
    computed: list[tuple[str, float]] = field(default_factory=list)

    def run(self, rates: dict[str, float], seconds: float) -> None:
        queue: FairQueue[Text] = FairQueue(Shares(self.limits, lambda: self.now))
        due = iter(self._arrivals(rates, seconds))
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
                seconds = A_BATCH + A_TEXT * len(batch)
                queue.observe(TOKENS * len(batch), seconds)
                self.now += seconds
                for text in batch:
                    waiting[text.tenant] -= 1
                    self.computed.append((text.tenant, self.now - text.due))

    def p95(self, tenants: set[str]) -> float:
        return float(np.percentile([latency for tenant, latency in self.computed if tenant in tenants], 95))

    @staticmethod
    def _arrivals(rates: dict[str, float], seconds: float) -> list[Text]:
        rng = random.Random(0)
        counts = {tenant: round(rate * seconds) for tenant, rate in rates.items()}
        texts = [Text(tenant, rng.uniform(0, seconds)) for tenant, count in counts.items() for _ in range(count)]
        return sorted(texts, key=lambda text: text.due)


def others() -> set[str]:
    return {f"t{number}" for number in range(1, TENANTS)}


@pytest.mark.parametrize("load", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_a_neighbour_with_ten_times_its_share_moves_the_p95_of_others_by_less_than_a_quarter(load: float) -> None:
    share = load * CAPACITY / TENANTS
    rates = {f"t{number}": share for number in range(TENANTS)}
    quiet, greedy = Device(), Device()
    quiet.run(rates, 60)
    greedy.run({**rates, "t0": 10 * share}, 60)
    assert greedy.p95(others()) < 1.25 * quiet.p95(others())
    computed = Counter(tenant for tenant, _ in greedy.computed)
    assert all(computed[tenant] == round(60 * share) for tenant in others())
    # And the neighbour gets what they leave: a device that small batches keep busy loses a sixth at most.
    assert computed["t0"] / 60 > (0.84 - load * 0.9) * CAPACITY


def test_tenants_who_all_ask_for_too_much_get_parts_by_their_weights() -> None:
    device = Device(TenantTable(tenants={"paid": TenantLimits(weight=3.0)}))
    device.run(dict.fromkeys(["paid", "a", "b"], 3 * CAPACITY), 20)
    computed = Counter(tenant for tenant, latency in device.computed)
    assert computed["paid"] / computed["a"] == pytest.approx(3.0, rel=0.1)
    assert computed["a"] / computed["b"] == pytest.approx(1.0, rel=0.1)
    assert len(device.computed) / device.now > 0.95 * CAPACITY


def test_the_most_popular_of_many_tenants_is_hardly_held_back_while_there_is_room() -> None:
    popularity = [number**-1.1 for number in range(1, 33)]
    rates = {f"t{number}": 0.7 * CAPACITY * part / sum(popularity) for number, part in enumerate(popularity)}
    device = Device()
    device.run(rates, 60)
    assert device.p95({"t0"}) < 2 * device.p95({f"t{number}" for number in range(1, 32)})

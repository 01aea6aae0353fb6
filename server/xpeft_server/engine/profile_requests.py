"""Requests by profile, for the profiles that are asked for most; all others share one series."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_OTHER = ("", "other")
# Candidates are remembered for this many times the series shown, and at least so many.
_CANDIDATES_PER_SERIES = 16
_LEAST_CANDIDATES = 256


class ProfileRequests(Collector):
    """``profile_requests_total{tenant,profile}``: a series for each of the ``top`` profiles, and ``other``.

    Which profiles have a series of their own is decided at each scrape, by their counts. A profile that
    enters starts from zero (what it had before stays in ``other``), one that leaves is added to ``other``:
    so every series only grows while it is there, and the sum of all is the number of requests.
    ``other`` has an empty tenant, which no real tenant has. Used from the event loop only.
    """

    def __init__(self, name: str, documentation: str, *, top: int) -> None:
        self._name = name
        self._documentation = documentation
        self._top = top
        self._most_candidates = max(_LEAST_CANDIDATES, _CANDIDATES_PER_SERIES * top)
        self._candidates: dict[tuple[str, str], int] = {}
        self._shown: dict[tuple[str, str], int] = {}
        self._other = 0

    def count(self, tenant: str, profile: str, requests: int = 1) -> None:
        """More answered requests of ``profile``."""
        key = (tenant, profile)
        candidates = self._candidates
        candidates[key] = candidates.get(key, 0) + requests
        if key in self._shown:
            self._shown[key] += requests
        elif len(self._shown) < self._top:
            self._shown[key] = requests
        else:
            self._other += requests
        if len(candidates) > self._most_candidates:
            self._forget_the_rare()

    def take(self) -> Mapping[tuple[str, str], int]:
        """What was counted since the last time, by tenant and profile, the rare ones as other; it is gone from here."""
        counted = sum(self._shown.values()) + self._other
        taken, self._candidates = self._candidates, {}
        self._shown, self._other = {}, 0
        return {**taken, _OTHER: counted - sum(taken.values())}

    def add(self, taken: Mapping[tuple[str, str], int]) -> None:
        """What was counted elsewhere, as `take` gives it."""
        for key, requests in taken.items():
            if key == _OTHER:
                self._other += requests
            else:
                self.count(*key, requests)

    def collect(self) -> Iterator[CounterMetricFamily]:
        self._choose()
        family = CounterMetricFamily(self._name, self._documentation, labels=("tenant", "profile"))
        for key, count in sorted(self._shown.items()):
            family.add_metric(key, count)
        family.add_metric(_OTHER, self._other)
        yield family

    def _choose(self) -> None:
        leaders = set(heapq.nlargest(self._top, self._candidates, key=self._candidates.__getitem__))
        for key in self._shown.keys() - leaders:
            self._other += self._shown.pop(key)
        for key in leaders - self._shown.keys():
            self._shown[key] = 0

    def _forget_the_rare(self) -> None:
        kept = heapq.nlargest(self._most_candidates // 2, self._candidates, key=self._candidates.__getitem__)
        self._candidates = {key: self._candidates[key] for key in kept}

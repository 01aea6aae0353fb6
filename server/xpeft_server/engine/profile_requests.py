"""Requests by profile, for the profiles that are asked for most; all others share one series."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

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

    def count(self, tenant: str, profile: str) -> None:
        """One more answered request of ``profile``."""
        key = (tenant, profile)
        candidates = self._candidates
        candidates[key] = candidates.get(key, 0) + 1
        if key in self._shown:
            self._shown[key] += 1
        elif len(self._shown) < self._top:
            self._shown[key] = 1
        else:
            self._other += 1
        if len(candidates) > self._most_candidates:
            self._forget_the_rare()

    def collect(self) -> Iterator[CounterMetricFamily]:
        self._choose()
        family = CounterMetricFamily(self._name, self._documentation, labels=("tenant", "profile"))
        for key, count in sorted(self._shown.items()):
            family.add_metric(key, count)
        family.add_metric(("", "other"), self._other)
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

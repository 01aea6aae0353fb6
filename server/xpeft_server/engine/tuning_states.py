"""How many tuning jobs there are in each state that is not the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

STATES: Final = ("queued", "running")


class TuningStates(Collector):
    """A gauge by ``status``, counted at each scrape."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._count: Callable[[], Mapping[str, int]] = dict

    def set_function(self, count: Callable[[], Mapping[str, int]]) -> None:
        """``count`` gives the number of jobs by state; a state that it leaves out has none."""
        self._count = count

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(self._name, self._documentation, labels=("status",))
        counts = self._count()
        for state in STATES:
            family.add_metric((state,), counts.get(state, 0))
        yield family

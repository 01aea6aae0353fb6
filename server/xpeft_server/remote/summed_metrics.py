"""The metrics of a server's processes, summed."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from xpeft_server.engine.metrics import Metrics

from .peer import Peer

# Series that are not counts, and what stands for all processes; every other series is added up.
_ONE_OF: Final[Mapping[str, Callable[[float, float], float]]] = {
    "xpeft_build_info": max,
    "xpeft_kernel_info": max,
    "xpeft_store_up": min,
    "process_max_fds": min,
    "process_open_fds": max,
    "process_start_time_seconds": min,
}
# Types whose values only grow, in a process and so in the sum.
_GROWS: Final = ("counter", "histogram")


class MetricsReport(NamedTuple):
    """The metrics of one process, as it sends them to another.

    Attributes:
        profile_requests: by tenant and profile, since its last report; see `ProfileRequests.take`.
        families: everything else, pickled.
    """

    profile_requests: Mapping[tuple[str, str], int]
    families: bytes


class ConnectedMetrics(Metrics):
    """The metrics of one process, shown with those of all others.

    One process alone decides which profiles have a series of their own: it counts what the others hand over.
    """

    def __init__(self, peer: Peer, *, top_profiles: int) -> None:
        super().__init__(top_profiles=top_profiles)
        self._peer = peer

    async def page(self) -> bytes:
        """Raises: Unavailable."""
        processes: list[bytes] = await self._peer.call("families")
        return summed(pickle.loads(each) for each in processes)  # noqa: S301  # see peer.py

    def report(self) -> MetricsReport:
        """This process's counts by profile and its families; taking the counts removes them from `families`."""
        taken = self.profile_requests.take()
        return MetricsReport(taken, pickle.dumps(self.families()))


def summed(processes: Iterable[Iterable[Metric]]) -> bytes:
    """One page of all, in Prometheus' text format.

    Args: processes: the families of each; see `Metrics.families`.
    """
    return generate_latest(_Summed(processes))


class EndedProcesses:
    """What processes had counted when they ended. Without it the sums would fall, and Prometheus would take the rest
    as counted anew.
    """

    def __init__(self) -> None:
        self._families: list[Metric] = []

    def add(self, families: Iterable[Metric]) -> None:
        """A process has ended. Args: families: of its last report."""
        counted = [family for family in families if family.type in _GROWS]
        self._families = list(_Summed([self._families, counted]).collect())

    def families(self) -> list[Metric]:
        """Of all of them together, as `summed` takes those of a process."""
        return self._families


class _Summed(Collector):
    def __init__(self, processes: Iterable[Iterable[Metric]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        values: dict[str, dict[tuple[str, frozenset[tuple[str, str]]], Sample]] = {}
        for process in self._processes:
            for family in process:
                families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                series = values.setdefault(family.name, {})
                for sample in family.samples:
                    _add(series, sample, _ONE_OF.get(sample.name))
        for name, family in families.items():
            family.samples = list(values[name].values())
            yield family


def _add(
    series: dict[tuple[str, frozenset[tuple[str, str]]], Sample],
    sample: Sample,
    choose: Callable[[float, float], float] | None,
) -> None:
    key = sample.name, frozenset(sample.labels.items())
    there = series.get(key)
    if there is None:
        series[key] = sample
    else:
        both = there.value, sample.value
        series[key] = sample._replace(value=sum(both) if choose is None else choose(*both))

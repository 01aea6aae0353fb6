"""The metrics of several processes in one text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from xpeft_server.engine.metrics import Metrics

LABEL: Final = "replica"


class Exposition(NamedTuple):
    """A process's metrics in Prometheus' text format."""

    replica: str
    text: bytes


class ReplicatedMetrics(Metrics):
    """An ingress's own metrics, shown beside those of all other processes of the application.

    Args:
        name: of this replica.
        others: replica → its exposition, as of the last round of reports.
    """

    def __init__(self, *, top_profiles: int, name: str, others: Callable[[], Mapping[str, bytes]]) -> None:
        super().__init__(top_profiles=top_profiles)
        self._name = name
        self._others = others

    def render(self) -> bytes:
        """All families of all replicas in Prometheus' text format, each series with the label ``replica``."""
        return merged({**self._others(), self._name: self.own()})

    def own(self) -> bytes:
        """This process's alone, without the label."""
        return super().render()


def merged(expositions: Mapping[str, bytes]) -> bytes:
    """One exposition of many; every series gets the label ``replica``."""
    return generate_latest(_Merged(expositions))


class _Merged(Collector):
    def __init__(self, expositions: Mapping[str, bytes]) -> None:
        self._expositions = expositions

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, exposition in self._expositions.items():
            for family in text_string_to_metric_families(exposition.decode()):
                there = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                there.samples += [
                    sample._replace(labels={**sample.labels, LABEL: replica}) for sample in family.samples
                ]
        yield from families.values()

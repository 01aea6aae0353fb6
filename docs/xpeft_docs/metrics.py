"""Every family of metrics, as a server that has just started shows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from xpeft_server.api.access.table import ACCESS
from xpeft_server.engine.metrics import Metrics

from .table import code, table

# Labels whose values are not of a fixed vocabulary, and what they are.
_OPEN: Final[Mapping[str, str]] = {
    "route": "the path's template",
    "tenant": "its name, empty for `other`",
    "profile": "its name, or `other`",
    "version": "of xpeft-server",
    "python": "its version",
    "operator": "`aggregate_adapters`, …",
    "implementation": "`reference`, `triton`",
}


def metrics_table() -> str:
    metrics = Metrics()
    metrics.expect_routes(ACCESS)
    metrics.set_kernels({"aggregate_adapters": "reference"})
    families = text_string_to_metric_families(metrics.render().decode())
    rows = ((_name(each), each.type, "<br>".join(_labels(each)), each.documentation) for each in families)
    return table(("metric", "type", "labels", "meaning"), rows)


def _name(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return f'<span id="{name}"></span>`{name}`'


def _labels(family: Metric) -> Iterator[str]:
    found: dict[str, set[str]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            found.setdefault(label, set()).add(value)
    buckets = found.pop("le", None)
    for label, values in found.items():
        yield f"{code(label)}: {_OPEN.get(label) or _listed(values)}"
    if buckets is not None:
        limits = sorted(float(value) for value in buckets if value != "+Inf")
        yield f"buckets from {limits[0]:g} to {limits[-1]:g}"


def _listed(values: Iterable[str]) -> str:
    return ", ".join(map(code, sorted(values)))

"""deploy/, and what a server shows to whoever scrapes it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from xpeft_server.api.access.table import ACCESS
from xpeft_server.engine.metrics import Metrics

# A metric of the server, of its process or of Prometheus itself, or what a rule records; then its label matchers.
_SELECTOR = re.compile(r"\b((?:xpeft|process)_\w+|[a-z_]+:\w+:\w+|up|ALERTS)\b(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


class Matcher(NamedTuple):
    label: str
    operator: str
    value: str

    def admits(self, labels: dict[str, str]) -> bool:
        found = labels.get(self.label, "")
        same = re.fullmatch(self.value, found) is not None if "~" in self.operator else found == self.value
        return same != self.operator.startswith("!")


class Selector(NamedTuple):
    name: str
    matchers: tuple[Matcher, ...]


class Rules(NamedTuple):
    """What deploy/prometheus/rules says; a rule is a mapping."""

    recording: dict[str, dict[str, Any]]
    alerts: dict[str, dict[str, Any]]


class Exposition:
    """The series of a server that has just started, each family with at least one."""

    def __init__(self) -> None:
        metrics = Metrics()
        metrics.expect_routes(ACCESS)
        metrics.set_kernels({"apply_adapters": "reference"})
        metrics.profile_requests.count("airline", "desk")
        families = list(text_string_to_metric_families(metrics.render().decode()))
        self.families = [family.name for family in families if family.name.startswith("xpeft_")]
        self._series: dict[str, list[dict[str, str]]] = {}
        for sample in (sample for family in families for sample in family.samples):
            self._series.setdefault(sample.name, []).append(sample.labels)

    def has(self, selector: Selector) -> bool:
        """Whether a series fits; what Prometheus adds (job, instance) and what a variable holds is left aside."""
        matchers = [
            matcher
            for matcher in selector.matchers
            if matcher.label not in ("job", "instance") and "$" not in matcher.value
        ]
        series = self._series.get(selector.name, [])
        return any(all(matcher.admits(labels) for matcher in matchers) for labels in series)


@pytest.fixture(scope="session")
def exposition() -> Exposition:
    return Exposition()


@pytest.fixture(scope="session")
def deploy(project_root: Path) -> Path:
    return project_root / "deploy"


@pytest.fixture(scope="session")
def rules(deploy: Path) -> Rules:
    found = Rules({}, {})
    for path in sorted((deploy / "prometheus" / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                kind, name = ("alerts", rule["alert"]) if "alert" in rule else ("recording", rule["record"])
                assert name not in getattr(found, kind), f"{name} is there twice"
                getattr(found, kind)[name] = rule
    return found


@pytest.fixture(scope="session")
def selectors() -> Callable[[str], list[Selector]]:
    """The series that an expression asks for."""

    def find(expr: str) -> list[Selector]:
        found: Iterator[re.Match[str]] = _SELECTOR.finditer(expr)
        return [Selector(each[1], tuple(Matcher(*part) for part in _MATCHER.findall(each[2] or ""))) for each in found]

    return find


@pytest.fixture(scope="session")
def debian_program() -> Callable[[str], str]:
    """The path of a program of Debian's prometheus package; the test is skipped without it."""

    def find(name: str) -> str:
        path = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        if path is None:
            pytest.skip(f"{name} is not there: make prometheus")
        return path

    return find


@pytest.fixture(scope="session")
def configure_prometheus(deploy: Path) -> Callable[..., Path]:
    """Writes the repository's configuration into a folder, with a target, a key and an interval of one's own."""

    def write(folder: Path, *, target: str, key: str, interval: str = "15s") -> Path:
        config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
        config["global"] |= {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
        config["rule_files"] = [str(deploy / "prometheus" / pattern) for pattern in config["rule_files"]]
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [target]}]
        job["authorization"]["credentials_file"] = str(folder / "operator.key")
        (folder / "operator.key").write_text(key, encoding="utf-8")
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    return write

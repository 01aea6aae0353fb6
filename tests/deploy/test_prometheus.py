"""The rules: Prometheus takes them, each alert is seen to fire and not to, and they ask for what a server shows."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_configuration_and_its_rules(
    debian_program: Callable[[str], str], configure_prometheus: Callable[..., Path], tmp_path: Path, rules: Any
) -> None:
    config = configure_prometheus(tmp_path, target="server:8000", key="xp_key")
    said = _run(debian_program("promtool"), "check", "config", "--lint-fatal", str(config))
    found = sum(map(int, re.findall(r"SUCCESS: (\d+) rules found", said)))
    assert found == len(rules.recording) + len(rules.alerts)


def test_promtool_finds_no_fault_with_the_rules(project_root: Path, debian_program: Callable[[str], str]) -> None:
    page = (project_root / "docs" / "monitoring.md").read_text(encoding="utf-8")
    block = re.search(
        r"^```sh test:test_promtool_finds_no_fault_with_the_rules\n(.*?)^```", page, re.MULTILINE | re.DOTALL
    )
    assert block
    path = os.pathsep.join([str(Path(debian_program("promtool")).parent), os.environ["PATH"]])
    said = _run("bash", "-euo", "pipefail", "-c", block[1], cwd=project_root, env={**os.environ, "PATH": path})
    files = sorted((project_root / "deploy" / "prometheus" / "tests").glob("*.yml"))
    assert re.findall(r"Unit Testing: +(\S+)\n +SUCCESS", said) == [
        str(path.relative_to(project_root)) for path in files
    ]


def test_every_alert_is_tested_firing_and_not_firing(deploy: Path, rules: Any) -> None:
    files = sorted((deploy / "prometheus" / "tests").glob("*.yml"))
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for test in (test for path in files for test in _load(path)["tests"]):
        for case in test.get("alert_rule_test", []):
            seen[bool(case["exp_alerts"])].add(case["alertname"])
    assert seen == {True: set(rules.alerts), False: set(rules.alerts)}


def test_every_alert_says_how_bad_it_is_and_where_it_stands_what_to_do(project_root: Path, rules: Any) -> None:
    page = (project_root / "docs" / "monitoring.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### (Xpeft\w+)$", page, re.MULTILINE)
    assert sorted(sections) == sorted(rules.alerts)
    for name, alert in rules.alerts.items():
        assert alert["labels"].keys() == {"severity"}, name
        assert alert["labels"]["severity"] in ("critical", "warning", "info"), name
        assert alert["annotations"].keys() == {"summary", "description", "runbook"}, name
        assert alert["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"


def test_the_rules_ask_only_for_series_that_a_server_or_a_rule_makes(
    rules: Any, selectors: Callable[[str], list[Any]], exposition: Any
) -> None:
    for name, rule in {**rules.recording, **rules.alerts}.items():
        asked = selectors(rule["expr"])
        assert asked or name.startswith("xpeft:objective:"), name
        for selector in asked:
            assert selector.name in (*rules.recording, "up") or exposition.has(selector), (name, selector)


def test_a_ratio_is_the_same_over_each_of_its_windows(rules: Any) -> None:
    families: dict[str, dict[str, set[str]]] = {}
    for name, rule in rules.recording.items():
        family, rate, window = name.partition(":ratio_rate")
        if rate:
            asked = families.setdefault(family, {}).setdefault(rule["expr"].replace(f"[{window}]", "[…]"), set())
            asked.add(window)
    for family in ("job:xpeft_request_errors", "job:xpeft_classify_slow"):
        assert list(families[family].values()) == [{"5m", "30m", "1h", "2h", "6h", "1d", "3d"}]
    assert all(len(exprs) == 1 for exprs in families.values())


@pytest.mark.parametrize(
    ("alert", "windows"),
    [
        ("BurnsFast", [("1h", "14.4"), ("5m", "14.4"), ("6h", "6"), ("30m", "6")]),
        ("BurnsSlowly", [("1d", "3"), ("2h", "3"), ("3d", "1"), ("6h", "1")]),
    ],
)
@pytest.mark.parametrize(
    ("budget", "ratio", "objective"),
    [("Error", "request_errors", "availability"), ("Latency", "classify_slow", "classify_latency")],
)
def test_alerts_on_budgets_ask_the_windows_and_factors_of_the_workbook(
    alert: str, windows: list[tuple[str, str]], budget: str, ratio: str, objective: str, rules: Any
) -> None:
    parts = [
        f"job:xpeft_{ratio}:ratio_rate{window} > {factor} * (1 - scalar(xpeft:objective:{objective}))"
        for window, factor in windows
    ]
    pairs = [f"( {long} and {short} )" for long, short in zip(parts[::2], parts[1::2], strict=True)]
    assert " ".join(rules.alerts[f"Xpeft{budget}Budget{alert}"]["expr"].split()) == " or ".join(pairs)


def test_whatever_is_recorded_is_used(deploy: Path, rules: Any, selectors: Callable[[str], list[Any]]) -> None:
    dashboard = (deploy / "grafana" / "dashboards" / "xpeft.json").read_text(encoding="utf-8")
    expressions = [rule["expr"] for rule in rules.alerts.values()]
    used = {selector.name for text in (*expressions, dashboard) for selector in selectors(text)}
    assert set(rules.recording) - used == set()


def test_the_budgets_that_the_dashboard_shows_are_those_of_the_objectives(deploy: Path, rules: Any) -> None:
    allowed = {
        name.rpartition(":")[2]: 1 - float(rules.recording[name]["expr"])
        for name in rules.recording
        if name.startswith("xpeft:objective:")
    }
    panels = yaml.safe_load((deploy / "grafana" / "dashboards" / "xpeft.json").read_text(encoding="utf-8"))["panels"]
    shown = {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        for panel in panels
        if panel["type"] == "stat"
    }
    for title, objective in {"Requests that fail": "availability", "Slow answers": "classify_latency"}.items():
        assert [step["value"] for step in shown[title]] == [
            None,
            pytest.approx(allowed[objective]),
            pytest.approx(14.4 * allowed[objective]),
        ]


def test_prometheus_scrapes_the_server_with_the_key_that_the_first_start_makes(deploy: Path) -> None:
    services = _load(deploy / "compose.yaml")["services"]
    (job,) = _load(deploy / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["server:8000"]}]
    keys_file, operator_key = services["first-key"]["command"]
    assert job["authorization"]["credentials_file"] == operator_key
    image = (deploy.parent / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(rf"XPEFT_API_KEYS={re.escape(keys_file)}\b", image)
    assert re.search(r"XPEFT_PORT=8000\b", image)

"""What belongs together fits: selectors, ports, names, the store, Prometheus and the autoscaler."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.table import ACCESS
from xpeft_server.engine.metrics import Metrics

LABELS = {"app.kubernetes.io/name": "xpeft-server"}


def test_every_port_is_the_one_that_the_server_listens_on(installation: Any) -> None:
    listens = installation.settings.port
    (port,) = installation.container["ports"]
    assert port["containerPort"] == listens
    (offered,) = installation.the("Service")["spec"]["ports"]
    assert offered["targetPort"] == port["name"]
    incoming = [rule for each in installation.all("NetworkPolicy") for rule in each["spec"].get("ingress", [])]
    assert incoming
    for rule in incoming:
        assert rule["from"], "open to everybody"
        assert rule["ports"] == [{"protocol": "TCP", "port": listens}]


def selectors(installation: Any) -> Iterator[tuple[str, dict[str, str]]]:
    """Where, and the labels of pods that are meant there."""
    for each in installation.objects:
        spec, where = each.get("spec", {}), f"{each['kind']} {each['metadata']['name']}"
        if each["kind"] == "Service":
            yield where, spec["selector"]
        elif each["kind"] == "NetworkPolicy":
            yield where, spec["podSelector"]["matchLabels"]
        elif each["kind"] in {"Deployment", "PodDisruptionBudget"}:
            yield where, spec["selector"]["matchLabels"]
    for spread in installation.pod.get("topologySpreadConstraints", []):
        yield f"spread over {spread['topologyKey']}", spread["labelSelector"]["matchLabels"]


def test_everything_that_selects_pods_selects_the_servers(installation: Any) -> None:
    labels = installation.the("Deployment")["spec"]["template"]["metadata"]["labels"]
    found = dict(selectors(installation))
    assert len(found) >= 3
    for where, wanted in found.items():
        assert wanted == LABELS, where
        assert wanted.items() <= labels.items(), where


def test_one_server_keeps_its_profiles_on_a_volume_that_no_second_server_has_open(install: Any) -> None:
    installation = install("single")
    spec = installation.the("Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    store = installation.settings.store.removeprefix("sqlite:///")
    (mount,) = [
        each for each in installation.container["volumeMounts"] if Path(each["mountPath"]) == Path(store).parent
    ]
    (volume,) = [each for each in installation.pod["volumes"] if each["name"] == mount["name"]]
    claim = {"claimName": installation.the("PersistentVolumeClaim")["metadata"]["name"]}
    assert volume == {"name": mount["name"], "persistentVolumeClaim": claim}
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget", "ServiceMonitor"):
        assert installation.all(kind) == []


def test_several_servers_share_a_redis_and_may_reach_it(install: Any) -> None:
    installation = install("ha")
    (store,) = [each for each in installation.container["env"] if each["name"] == "XPEFT_STORE"]
    assert store["valueFrom"] == {"secretKeyRef": {"name": "xpeft-redis", "key": "url"}}
    ways = {each["metadata"]["name"]: each["spec"].get("egress") for each in installation.all("NetworkPolicy")}
    assert ways["xpeft-server-to-redis"][0]["ports"] == [{"protocol": "TCP", "port": 6379}]
    assert {port["port"] for port in ways["xpeft-server"][0]["ports"]} == {53}


def test_several_servers_are_replaced_one_by_one_and_their_number_is_the_autoscalers(install: Any) -> None:
    installation = install("ha")
    deployment, scaler = installation.the("Deployment"), installation.the("HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in deployment["spec"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert scaler["scaleTargetRef"] == target
    budget = installation.the("PodDisruptionBudget")["spec"]
    assert scaler["minReplicas"] - budget["maxUnavailable"] >= 2


def test_the_autoscaler_asks_for_a_gauge_of_the_server_that_the_adapters_rule_hands_on(
    install: Any, project_root: Path
) -> None:
    (asked,) = install("ha").the("HorizontalPodAutoscaler")["spec"]["metrics"]
    metric = asked["pods"]["metric"]["name"]
    assert f"# TYPE {metric} gauge" in Metrics().render().decode()
    example = project_root / "deploy" / "kubernetes" / "examples" / "prometheus-adapter.yaml"
    (rule,) = yaml.safe_load(example.read_text())["rules"]["custom"]
    # Without a name of its own, the rule's metric keeps the name of the series.
    assert rule.keys() == {"seriesQuery", "resources", "metricsQuery"}
    labels = rule["resources"]["overrides"]
    assert labels == {each: {"resource": each} for each in ("namespace", "pod")}
    assert rule["seriesQuery"] == metric + '{namespace!="",pod!=""}'
    assert re.findall("<<(.+?)>>", rule["metricsQuery"]) == [".Series", ".LabelMatchers", ".GroupBy"]


def test_prometheus_is_told_a_port_of_the_service_and_the_route_with_an_operators_key(install: Any) -> None:
    installation = install("single", "prometheus-operator")
    monitor, service = installation.the("ServiceMonitor"), installation.the("Service")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint.keys() == {"port", "path", "interval", "authorization"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert ACCESS[endpoint["path"]]["GET"] == {Role.OPERATOR}
    credentials = {"name": "xpeft-operator-key", "key": "token"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": credentials}


def test_a_download_from_a_hub_is_let_out_only_with_its_component(install: Any) -> None:
    assert install("single").environment["HF_HUB_OFFLINE"] == "1"
    installation = install("single", "hub")
    assert installation.environment["HF_HUB_OFFLINE"] == "0"
    assert "xpeft-server-to-hub" in {each["metadata"]["name"] for each in installation.all("NetworkPolicy")}

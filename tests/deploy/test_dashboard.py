"""The dashboard, as far as that shows without Grafana: what it draws, where, from which data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

COLUMNS = 24


@pytest.fixture(scope="module")
def dashboard(deploy: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((deploy / "grafana" / "dashboards" / "xpeft.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Without the rows' headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _provisioned(deploy: Path, kind: str) -> dict[str, Any]:
    (path,) = (deploy / "grafana" / "provisioning" / kind).glob("*.yaml")
    (entry,) = yaml.safe_load(path.read_text(encoding="utf-8"))[{"dashboards": "providers"}.get(kind, kind)]
    found: dict[str, Any] = entry
    return found


def test_the_rows_follow_a_request_through_the_server(dashboard: dict[str, Any]) -> None:
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == [
        "Now",
        "Traffic",
        "Latency by stage",
        "Batches",
        "Profiles and slots",
        "Store",
        "Tenants and refusals",
        "Generation",
        "Tuning jobs",
        "Process",
    ]


def test_no_two_panels_share_an_id_a_title_or_a_place(dashboard: dict[str, Any]) -> None:
    everything = dashboard["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    taken: dict[tuple[int, int], str] = {}
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]


def test_panels_stand_in_the_order_in_which_they_are_written(dashboard: dict[str, Any]) -> None:
    places = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in dashboard["panels"]]
    assert places == sorted(places)


def test_every_panel_says_what_it_draws_in_which_unit_and_from_where(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries", "table"), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert references == sorted(set(references)), panel["title"]
        if panel["type"] == "timeseries":
            assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]


def test_the_panels_ask_only_for_series_that_a_server_or_a_rule_makes(
    panels: list[dict[str, Any]], rules: Any, selectors: Callable[[str], list[Any]], exposition: Any
) -> None:
    for panel in panels:
        for target in panel["targets"]:
            asked = selectors(target["expr"])
            assert asked, panel["title"]
            for selector in asked:
                assert selector.name in (*rules.recording, "ALERTS") or exposition.has(selector), (
                    panel["title"],
                    selector,
                )


def test_every_family_of_the_server_is_on_the_dashboard(
    panels: list[dict[str, Any]], rules: Any, selectors: Callable[[str], list[Any]], exposition: Any
) -> None:
    drawn = [selector.name for panel in panels for target in panel["targets"] for selector in selectors(target["expr"])]
    recorded = [rules.recording[name]["expr"] for name in drawn if name in rules.recording]
    names = {*drawn, *(selector.name for expr in recorded for selector in selectors(expr))}
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in names}
    assert set(exposition.families) - families == set()


def test_every_legend_is_made_of_labels_that_the_query_keeps(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        for target in panel["targets"]:
            kept = re.search(r"\bby \(([^)]*)\)", target["expr"])
            if kept:
                labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                assert labels <= set(re.split(r",\s*", kept[1])), (panel["title"], target["refId"])


def test_every_variable_is_used_and_every_variable_that_is_used_exists(dashboard: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in dashboard["templating"]["list"]}
    text = json.dumps([dashboard["panels"], dashboard["annotations"]])
    used = set(re.findall(r"\$\{?(\w+)\}?", text)) - {"__rate_interval"}
    assert used == defined


def test_the_data_source_is_the_prometheus_of_the_compose_file(dashboard: dict[str, Any], deploy: Path) -> None:
    source = _provisioned(deploy, "datasources")
    (variable,) = (each for each in dashboard["templating"]["list"] if each["type"] == "datasource")
    assert variable["query"] == source["type"] == "prometheus"
    assert variable["current"]["value"] == source["uid"]
    compose = yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))
    assert source["url"] == "http://prometheus:9090"
    assert compose["services"]["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]
    config = yaml.safe_load((deploy / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_grafana_finds_the_dashboard_where_the_compose_file_puts_it(dashboard: dict[str, Any], deploy: Path) -> None:
    grafana = yaml.safe_load((deploy / "compose.yaml").read_text(encoding="utf-8"))["services"]["grafana"]
    mounted = {volume.split(":")[0]: volume.split(":")[1] for volume in grafana["volumes"]}
    provider = _provisioned(deploy, "dashboards")
    assert mounted["./grafana/provisioning"] == "/etc/grafana/provisioning"
    assert mounted["./grafana/dashboards"] == provider["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.parent == Path(provider["options"]["path"])
    assert (deploy / "grafana" / "dashboards" / home.name).exists()
    # What is changed in Grafana would be gone with the next start.
    assert dashboard["editable"] is provider["allowUiUpdates"] is False

"""A real Prometheus with the repository's configuration scrapes a real server: rules and dashboard have data."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from xpeft_profiles import Profile, write_profile_file
from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys

MODEL = ("--bank", "random:N=4,R=4,seed=1,std=0.3", "--slots", "2")
LIMITS = ("--queue-limit", "8", "--max-inputs", "8")
SECONDS = 60


def _until(happened: Callable[[], Any], what: str) -> Any:
    """What it gives once that is true."""
    deadline = time.monotonic() + SECONDS
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.05)
    return found


@contextmanager
def _program(*command: str, log: Path) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Monitored:
    """A server of two slots that writes and classifies, and the Prometheus that scrapes it each second.

    Args:
        log: what the server says on standard error.
        client: of the server, with the key of a tenant's admin.
        prometheus: a client of its HTTP API.
    """

    def __init__(
        self, process: subprocess.Popen[str], log: Path, client: httpx.Client, prometheus: httpx.Client
    ) -> None:
        self.process = process
        self._log = log
        self._client = client
        self._prometheus = prometheus

    def ask(self, expr: str) -> list[Any]:
        """The series that an instant query gives now."""
        answer = self._prometheus.post("/api/v1/query", data={"query": expr}).json()
        assert answer["status"] == "success", (expr, answer)
        found: list[Any] = answer["data"]["result"]
        return found

    def wait_for(self, expr: str) -> None:
        """Until the query gives a series."""
        _until(lambda: self.ask(expr), expr)

    def rules(self) -> list[dict[str, Any]]:
        groups = self._prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def has_scraped(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            ready = self._prometheus.get("/-/ready").is_success
            return ready and bool(self.ask('up{job="xpeft"} == 1'))
        except httpx.TransportError:
            return False

    def send_traffic(self) -> None:
        """Uploads, answers, a text, an eviction, and a refusal for want of room."""
        for count in (1, 2, 3):
            put = self._client.put(f"/v1/profiles/p{count}", content=self._profile(count), headers=_BYTES)
            assert put.status_code == 201, put.text
            assert self._classify(f"p{count}", "w1 w2").status_code == 200
        written = self._client.post("/v1/generate", json={"profile": "base", "prompt": "w1 w2", "max_new_tokens": 4})
        assert written.status_code == 200, written.text
        with ThreadPoolExecutor(4) as pool:
            texts = ["w1 " * 40] * 8
            _until(
                lambda: 429 in pool.map(lambda _: self._classify("p1", texts).status_code, range(4)),
                "a refusal by a full queue",
            )

    def _classify(self, profile: str, text: Any) -> httpx.Response:
        return self._client.post("/v1/classify", json={"profile": profile, "input": text})

    def _profile(self, labels: int) -> bytes:
        bank = self._client.get("/info").json()["bank"]
        mask = np.ones((bank["blocks"], bank["adapters"]), bool)
        return write_profile_file(
            Profile(
                bank=bank["fingerprint"],
                mask_a=mask,
                mask_b=mask,
                head_weight=np.ones((labels, bank["hidden"]), np.float16),
                labels=tuple(f"label{number}" for number in range(labels)),
            )
        )


_BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def monitored(
    tiny_llama: Path,
    debian_program: Callable[[str], str],
    configure_prometheus: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Monitored]:
    program, folder = debian_program("prometheus"), tmp_path_factory.mktemp("scraping")
    made = {
        role: new_key(id=role, tenant=None if role == Role.OPERATOR else "airline", role=role, expires=None)
        for role in (Role.OPERATOR, Role.ADMIN)
    }
    write_keys(folder / "keys.json", [entry for _, entry in made.values()])
    serve = [str(Path(sys.executable).with_name("xpeft")), "serve", "--plm", str(tiny_llama), *MODEL, *LIMITS]
    serve += ["--store", f"sqlite:///{folder / 'profiles.db'}", "--api-keys", str(folder / "keys.json")]
    port, listen = free_port(), free_port()
    serve += ["--port", str(port)]
    # Both at once: Prometheus takes five seconds until it looks at its targets.
    config = configure_prometheus(folder, target=f"127.0.0.1:{port}", key=made[Role.OPERATOR][0], interval="1s")
    scrape = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    key = {"authorization": f"Bearer {made[Role.ADMIN][0]}"}
    with (
        _program(*scrape, f"--web.listen-address=127.0.0.1:{listen}", log=folder / "prometheus.log"),
        _program(*serve, log=folder / "server.log") as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=key, timeout=30) as client,
        httpx.Client(base_url=f"http://127.0.0.1:{listen}", timeout=30) as prometheus,
    ):
        found = Monitored(server, folder / "server.log", client, prometheus)
        # What was counted before the first scrape is no increase.
        _until(found.has_scraped, "the first scrape")
        found.send_traffic()
        yield found


def test_every_recording_rule_has_data(monitored: Monitored, rules: Any) -> None:
    for name in rules.recording:
        monitored.wait_for(name)


def test_what_the_server_did_is_what_prometheus_has(monitored: Monitored) -> None:
    for expr in (
        'xpeft_refusals_total{reason="queue"} > 0',
        'xpeft_requests_total{route="/v1/classify", outcome="overloaded"} > 0',
        'xpeft_profile_uploads_total{outcome="created"} == 3',
        'xpeft_profile_cache_evictions_total{tier="device"} > 0',
        "xpeft_time_to_first_token_seconds_count == 1",
        'job:xpeft_overload_refusals:ratio_rate5m{job="xpeft"} > 0',
        "xpeft_store_up == 1",
    ):
        monitored.wait_for(expr)


def test_every_query_of_the_dashboard_has_data(monitored: Monitored, deploy: Path) -> None:
    dashboard = json.loads((deploy / "grafana" / "dashboards" / "xpeft.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 50
    for query in queries:
        expr = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        monitored.wait_for(expr)
    for annotation in dashboard["annotations"]["list"]:
        monitored.ask(annotation["expr"].replace("$instance", ".*"))


def test_no_rule_fails_and_no_alert_says_that_a_healthy_server_is_away(monitored: Monitored, rules: Any) -> None:
    def evaluated() -> list[dict[str, Any]]:
        found = monitored.rules()
        return found if all(rule["health"] != "unknown" for rule in found) else []

    found = _until(evaluated, "each rule was evaluated")
    assert [(rule["name"], rule["lastError"]) for rule in found if rule["health"] != "ok"] == []
    assert {rule["name"] for rule in found} == {*rules.recording, *rules.alerts}
    away = {"XpeftNoneReady", "XpeftDown", "XpeftStoreDown", "XpeftRestarts", "XpeftStuck"}
    _until(
        lambda: away.isdisjoint(rule["name"] for rule in monitored.rules() if rule.get("alerts")),
        "no alert says that a healthy server is away",
    )


def test_a_server_that_ends_is_seen(monitored: Monitored) -> None:
    monitored.process.kill()
    for name in ("XpeftDown", "XpeftNoneReady"):
        monitored.wait_for(f'ALERTS{{alertname="{name}"}}')

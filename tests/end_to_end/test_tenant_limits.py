"""What a tenant may take, over HTTP: refused at the door, told when to come again, and nobody else notices."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys

TENANTS = ("small", "large", "many")
LIMITS = {
    "default": {"max_profiles": 3},
    "tenants": {
        "small": {"requests_per_second": 2, "max_profiles": 2},
        "large": {"concurrent_requests": 1},
        "many": {"max_profiles": None},
    },
}


class Limited:
    """A server whose tenants have limits; ``as_tenant`` is a client with that tenant's key."""

    def __init__(self, server: Any, keys: dict[str, str], limits: Path) -> None:
        self.server = server
        self.limits = limits
        self._keys = keys

    def as_tenant(self, tenant: str) -> httpx.Client:
        client: httpx.Client = self.server.client
        client.headers["authorization"] = f"Bearer {self._keys[tenant]}"
        return client

    def put(self, tenant: str, name: str, seed: int) -> httpx.Response:
        self.as_tenant(tenant)
        answer: httpx.Response = self.server.put(name, self.server.profile(seed))
        return answer

    def refusals(self) -> dict[str, float]:
        """By reason."""
        found: list[tuple[str, str]] = re.findall(
            r'^xpeft_refusals_total{reason="(\w+)"} (\S+)$', self.server.client.get("/metrics").text, re.MULTILINE
        )
        return {reason: float(count) for reason, count in found}


@pytest.fixture
def limited(start_server: Any, tmp_path: Path) -> Iterator[Limited]:
    made = {tenant: new_key(id=tenant, tenant=tenant, role=Role.ADMIN, expires=None) for tenant in TENANTS}
    write_keys(tmp_path / "keys.json", [entry for _, entry in made.values()])
    (tmp_path / "limits.json").write_text(json.dumps(LIMITS))
    server = start_server(
        "memory://",
        "--api-keys",
        str(tmp_path / "keys.json"),
        "--tenant-limits",
        str(tmp_path / "limits.json"),
        "--metrics-open",
        "--queue-seconds",
        "600",
    )
    server.wait_until_ready()
    yield Limited(server, {tenant: secret for tenant, (secret, _) in made.items()}, tmp_path / "limits.json")
    assert server.stop() == 0


def test_limits_hold_for_each_tenant_and_change_without_a_restart(limited: Limited, until: Any) -> None:
    # Profiles: as many as the tenant may have; in place of one it has, always.
    for number in range(2):
        assert limited.put("small", f"p{number}", number).status_code == 201
    refused = limited.put("small", "p2", 2)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "too_many_profiles"
    assert "2 profiles" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    assert limited.put("small", "p1", 9).status_code == 200
    for number in range(5):
        assert limited.put("many", f"p{number}", number).status_code == 201
    assert limited.put("large", "p0", 0).status_code == 201

    # Rates: two a second for one tenant, and others are not counted with it.
    limited.as_tenant("small")
    answers = [limited.server.classify("p0") for _ in range(8)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    late = [answer for answer in answers if answer.status_code == 429]
    assert late
    assert {answer.json()["error"]["code"] for answer in late} == {"tenant_limit"}
    assert "2 requests a second" in late[0].json()["error"]["message"]
    assert late[0].headers["retry-after"] == "1"
    limited.as_tenant("many")
    assert {limited.server.classify("p0").status_code for _ in range(20)} == {200}

    # Concurrency: one at a time.
    limited.as_tenant("large")
    long = [" ".join(["w1"] * 50)] * 100
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: limited.server.classify("p0", long).status_code, range(4)))
    assert set(statuses) == {200, 429}
    counted = limited.refusals()
    assert counted["profiles"] == 1
    assert counted["request_rate"] == len(late)
    assert counted["concurrency"] == statuses.count(429)

    # The file counts as soon as it is another one.
    limited.limits.write_text('{"default": {"max_profiles": 6}}')
    until(lambda: limited.put("small", "p2", 2).status_code == 201)
    assert {limited.server.classify("p0").status_code for _ in range(8)} == {200}


def test_a_file_of_limits_that_cannot_be_used_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "limits.json").write_text('{"tenants": {"acme": {"weight": 0}}}')
    program = str(Path(sys.executable).with_name("xpeft"))
    command = [program, "serve", "--store", "memory://", "--tenant-limits", str(tmp_path / "limits.json")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "tenants.acme.weight = 0 cannot be used" in ended.stderr

"""The HTTP side of an ingress, without Ray."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from xpeft_profiles import JobRecord, MemoryStore, StoreUnavailable
from xpeft_ray.door import Door
from xpeft_ray.exposition import Exposition, ReplicatedMetrics
from xpeft_server.api.access.auth import NoKeys
from xpeft_server.api.audit.log import AuditLog, AuditLogger
from xpeft_server.cli.serve.http_parts import HttpParts
from xpeft_server.jobs import records
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import ONE_TENANT

MINUTE = 60.0


class Peers:
    async def expositions(self) -> list[Exposition]:
        return []


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def door(replicas: Any, store: MemoryStore) -> AsyncIterator[Door]:
    door = Door(
        Settings(),
        replicas=replicas,
        store=store,
        parts=HttpParts(keys=NoKeys(), tls=None, audit=AuditLog(AuditLogger()), tracing=None),
        tenants=ONE_TENANT,
        metrics=ReplicatedMetrics(top_profiles=3, name="me", others=dict),
        peers=Peers(),
    )
    async with living(door):
        yield door


@asynccontextmanager
async def living(door: Door) -> AsyncIterator[None]:
    """As an ASGI server does it."""
    received: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.create_task(door({"type": "lifespan"}, received.get, sent.put))
    received.put_nowait({"type": "lifespan.startup"})
    async with asyncio.timeout(10):
        assert (await sent.get())["type"] == "lifespan.startup.complete"
    yield
    received.put_nowait({"type": "lifespan.shutdown"})
    async with asyncio.timeout(10):
        assert (await sent.get())["type"] == "lifespan.shutdown.complete"
        await task


def client(door: Door, *, address: str = "127.0.0.1", root: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(door, client=(address, 1234), root_path=root)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


BODY = {"profile": "desk", "input": "hello"}


async def test_it_answers_as_xpeft_serve_does(door: Door) -> None:
    async with client(door) as near:
        answer = await near.post("/v1/classify", json=BODY)
        assert (answer.status_code, answer.json()["data"][0]["label"]) == (200, "refund")
        assert (await near.get("/ready")).json()["checks"] == {"engine": "ok", "store": "ok", "server": "ok"}


async def test_without_keys_only_this_machine_is_served(door: Door, replicas: Any) -> None:
    async with client(door, address="192.0.2.7") as far:
        for answer in (await far.post("/v1/classify", json=BODY), await far.get("/health")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "loopback_only")
    assert replicas.seen == []


async def test_an_application_may_have_a_prefix(door: Door) -> None:
    async with client(door, root="/xpeft") as under:
        assert (await under.post("/xpeft/v1/classify", json=BODY)).status_code == 200
        assert (await under.get("/xpeft/v1/nothing")).status_code == 404


async def test_the_request_id_that_serves_proxy_gives_is_left_to_it(door: Door) -> None:
    async with client(door) as near:
        assert "x-request-id" not in (await near.get("/health", headers={"x-request-id": "from-the-proxy"})).headers
        assert "x-request-id" in (await near.get("/health", headers={"x-request-id": "not one of ours"})).headers


async def test_no_tuning_is_taken_and_other_servers_jobs_are_shown(door: Door, store: MemoryStore) -> None:
    record = JobRecord(tenant="default", id="job-1", profile="desk", owner="elsewhere", status="queued", created=1.0)
    await store.jobs.add(record, lease=60, most=4, keep=10)
    examples = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    async with client(door) as near:
        answer = await near.post("/v1/profiles/desk/tune", json={"examples": examples})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tuning_off")
        assert "xpeft serve on the same store" in answer.json()["error"]["message"]
        assert [job["id"] for job in (await near.get("/v1/jobs")).json()["data"]] == ["job-1"]
        assert (await near.get("/v1/jobs/job-1")).json()["status"] == "queued"
        assert (await near.post("/v1/jobs/job-1/cancel")).json()["status"] == "cancelled"
        assert (await near.post("/v1/jobs/job-1/cancel")).json()["status"] == "cancelled"
        assert (await near.get("/v1/jobs/job-2")).status_code == 404
        followed = await near.get("/v1/jobs/job-1", headers={"accept": "text/event-stream"})
        assert followed.text.endswith("data: [DONE]\n\n")


async def test_leases_that_lapsed_while_the_store_was_away_end_no_job(
    door: Door, store: MemoryStore, replicas: Any, reported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise StoreUnavailable("the store is down")

    async with client(door) as near, asyncio.timeout(MINUTE):
        with monkeypatch.context() as outage:
            outage.setattr(store, "ping", away)
            while (await near.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
        lapsed = JobRecord(tenant="default", id="job-1", profile="desk", owner="else", status="running", created=1.0)
        await store.jobs.add(lapsed, lease=0, most=4, keep=10)
        while (await near.get("/ready")).status_code != 200:
            await asyncio.sleep(0.01)
        assert (await near.get("/v1/jobs/job-1")).json()["status"] == "running"
        replicas.told = [reported(bank="cd")]
        while (await near.get("/info")).json()["bank"]["fingerprint"] != "sha256:" + 32 * "cd":
            await asyncio.sleep(0.01)
        assert (await near.get("/v1/jobs")).json()["data"][0]["status"] == "running"
        monkeypatch.setattr(records, "LEASE", 0.0)  # that long has the store been back
        assert (await near.get("/v1/jobs/job-1")).json()["status"] == "failed"


def test_an_ingress_loads_no_model_library() -> None:
    program = "import sys, xpeft_ray.application; assert not {'torch', 'transformers'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

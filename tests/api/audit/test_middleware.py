"""What the audit log says of requests, and what it never says."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from xpeft_profiles import StoreUnavailable
from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.table import ACCESS
from xpeft_server.api.audit.log import REFUSED_PER_SECOND
from xpeft_server.api.audit.middleware import ACTIONS
from xpeft_server.engine.errors import Unavailable

FILE = {"content-type": "application/octet-stream"}
EXAMPLES = [{"text": "secret words", "label": "SECRET"}, {"text": "others", "label": "other"}]
FIELDS = {
    "time", "request_id", "key", "tenant", "role", "client", "action",
    "profile", "job", "version_before", "version_after", "status", "code",
}  # fmt: skip


def test_every_write_of_the_table_of_access_has_an_action():
    writes = {(method, path) for path, methods in ACCESS.items() for method in methods if method not in ("GET", "HEAD")}
    assert {call for call in writes if ACCESS[call[1]][call[0]] == {Role.ADMIN}} == ACTIONS.keys()


async def test_an_upload_and_a_deletion_are_told_with_their_versions(keyed, profile_file, audited):
    acme = keyed("acme-admin")
    first = (await acme.put("/v1/profiles/p", content=profile_file(1), headers=FILE)).json()["version"]
    await acme.put("/v1/profiles/p", content=profile_file(1), headers=FILE)
    match = {"if-match": f'"{first}"', "x-request-id": "mine"}
    second = (await acme.put("/v1/profiles/p", content=profile_file(2), headers=FILE | match)).json()["version"]
    assert (await acme.delete("/v1/profiles/p", headers=match)).status_code == 412
    await acme.delete("/v1/profiles/p")
    await acme.delete("/v1/profiles/p")
    entries = audited()
    assert all(entry.keys() == FIELDS for entry in entries)
    assert [
        [entry[field] for field in ("action", "version_before", "version_after", "status", "code")] for entry in entries
    ] == [
        ["profile.put", None, first, 201, None],
        ["profile.put", first, first, 200, None],
        ["profile.put", first, second, 200, None],
        ["profile.delete", second, second, 412, "precondition_failed"],
        ["profile.delete", None, None, 204, None],
        ["profile.delete", None, None, 404, "profile_not_found"],
    ]
    for entry in entries:
        who = [entry[field] for field in ("key", "tenant", "role", "profile", "job")]
        assert who == ["acme-admin", "acme", "admin", "p", None]
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\dZ", entry["time"])
        assert re.fullmatch(r"127\.0\.0\.1:\d+", entry["client"])
    assert entries[2]["request_id"] == "mine"


async def test_a_job_is_told_when_it_is_submitted_and_when_it_is_cancelled(keyed, audited):
    acme = keyed("acme-admin")
    job = (await acme.post("/v1/profiles/desk/tune", json={"examples": EXAMPLES})).json()["id"]
    await acme.post(f"/v1/jobs/{job}/cancel")
    await acme.post(f"/v1/jobs/{job}/cancel")
    await acme.post("/v1/jobs/job_0/cancel")
    await acme.post("/v1/profiles/desk/tune", json={"examples": []})
    assert [[entry[field] for field in ("action", "profile", "job", "status", "code")] for entry in audited()] == [
        ["job.submit", "desk", job, 202, None],
        ["job.cancel", "desk", job, 200, None],
        ["job.cancel", "desk", job, 200, None],
        ["job.cancel", None, "job_0", 404, "job_not_found"],
        ["job.submit", "desk", None, 422, "invalid_field"],
    ]


async def test_reading_and_asking_leave_no_entry(keyed, profile_file, audited):
    acme = keyed("acme-admin")
    for path in ("/v1/profiles", "/v1/profiles/x", "/v1/models", "/v1/jobs", "/info", "/nowhere"):
        await acme.get(path)
    await acme.post("/v1/classify", json={"profile": "p", "input": "a"})
    assert audited() == []


async def test_who_is_refused_is_told_without_what_was_sent(keyed, profile_file, audited):
    await keyed("hush-hush").put("/v1/profiles/hush-name", content=b"hush-body", headers=FILE)
    await keyed(None).get("/hush-path?hush=query")
    await keyed("acme-infer").put("/v1/profiles/p", content=profile_file(1), headers=FILE)
    await keyed("ops").get("/v1/models")
    entries = audited()
    assert [
        [entry[field] for field in ("key", "tenant", "role", "action", "profile", "status", "code")]
        for entry in entries
    ] == [
        [None, None, None, "profile.put", None, 401, "invalid_api_key"],
        [None, None, None, "GET unmatched", None, 401, "missing_api_key"],
        ["acme-infer", "acme", "infer", "profile.put", "p", 403, "forbidden"],
        ["ops", None, "operator", "GET /v1/models", None, 403, "forbidden"],
    ]
    assert "hush" not in json.dumps(entries)


async def test_no_entry_has_a_secret_a_text_or_a_label(keyed, profile_file, audited):
    acme = keyed("acme-admin")
    await acme.put("/v1/profiles/p?q=hush", content=profile_file(1), headers=FILE | {"x-hush": "hush"})
    await acme.post("/v1/profiles/desk/tune", json={"examples": EXAMPLES, "labels": ["SECRET", "other"]})
    await acme.post("/v1/profiles/desk/tune", json={"examples": [{"text": "secret words", "label": ["SECRET"]}]})
    await acme.put("/v1/profiles/..%2fhush", content=profile_file(1), headers=FILE)
    shown = json.dumps(audited())
    for word in ("secret words", "SECRET", "refund", "baggage", "hush", "examples"):
        assert word not in shown


async def test_a_key_that_was_given_for_a_name_is_in_no_entry(keyed, profile_file, audited):
    key = "xp_" + "k" * 43
    put = await keyed("acme-admin").put(
        f"/v1/profiles/{key}", content=profile_file(1), headers=FILE | {"x-request-id": key}
    )
    assert put.status_code == 201
    (entry,) = audited()
    assert (entry["request_id"], entry["profile"], entry["status"]) == ("***", "***", 201)


async def test_a_write_that_fails_is_told_with_its_code(keyed, store, profile_file, audited, monkeypatch):
    async def down(*_, **__):
        raise StoreUnavailable("redis at redis:6379 failed")

    async def broken(*_, **__):
        raise ZeroDivisionError

    acme = keyed("acme-admin")
    monkeypatch.setattr(store, "put", down)
    await acme.put("/v1/profiles/p", content=profile_file(1), headers=FILE)
    monkeypatch.setattr(store, "put", broken)
    await acme.put("/v1/profiles/p", content=profile_file(1), headers=FILE)
    ends = [(entry["status"], entry["code"]) for entry in audited()]
    assert ends == [(503, "store_unavailable"), (500, "internal_error")]


async def test_a_write_whose_client_leaves_is_told_as_cancelled(port, audited, metric):
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"PUT /v1/profiles/p HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    writer.write(head + b"Content-Length: 9\r\n\r\nx")
    await writer.drain()
    # Answered after that head was read: connections are served in turn.
    reader, other = await asyncio.open_connection("127.0.0.1", port)
    other.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await reader.read()
    other.close()
    writer.close()
    async with asyncio.timeout(10):
        while not metric('xpeft_requests_total{outcome="cancelled",route="/v1/profiles/{name}"}'):
            await asyncio.sleep(0.01)
    (entry,) = audited()
    assert [entry[field] for field in ("tenant", "key", "profile", "status", "code")] == [
        "default", None, "p", None, "cancelled",
    ]  # fmt: skip


async def test_a_flood_of_wrong_keys_is_counted_and_not_written(keyed, audited):
    stranger = keyed("made-up")
    for _ in range(200):
        assert (await stranger.get("/v1/models")).status_code == 401
    await keyed("acme-infer").delete("/v1/profiles/p")
    entries = audited()
    counts = [entry for entry in entries if entry["action"] == "refusals_left_out"]
    written = [entry for entry in entries if entry["action"] == "GET /v1/models"]
    assert len(written) <= 5 * REFUSED_PER_SECOND
    assert len(written) + sum(entry["left_out"] for entry in counts) == 200
    assert {entry["status"] for entry in counts} == {401}
    # The flood hides nobody whose key is known.
    assert [entry["key"] for entry in entries if entry.get("status") == 403] == ["acme-infer"]


async def test_an_audit_log_that_cannot_be_written_fails_no_request(keyed, audit_sink, profile_file, caplog):
    audit_sink.failure = OSError(28, "No space left on device")
    acme = keyed("acme-admin")
    for seed in range(3):
        assert (await acme.put("/v1/profiles/p", content=profile_file(seed), headers=FILE)).status_code in (200, 201)
    async with asyncio.timeout(10):
        while "No space left" not in caplog.text:
            await asyncio.sleep(0.01)


async def test_an_engine_that_is_down_is_nothing_for_the_audit_log(keyed, engine, audited):
    engine.failure = Unavailable("no")
    await keyed("acme-infer").post("/v1/classify", json={"profile": "p", "input": "a"})
    assert audited() == []


@pytest.mark.parametrize("method", ["GET", "PATCH", "X" * 1000])
async def test_a_refusal_is_short_whatever_was_sent(keyed, audited, method):
    await keyed("y" * 5000).request(method, "/v1/profiles/" + "z" * 3000, headers={"x-request-id": "w" * 3000})
    (entry,) = audited()
    assert len(json.dumps(entry)) < 600

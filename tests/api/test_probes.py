"""/health, /ready, /info, /metrics, /v1/models, the generating routes and paths that there are not."""

from __future__ import annotations

import dataclasses

import pytest

from xpeft_server.api.access.table import ACCESS, UNMATCHED
from xpeft_server.engine.metrics import OUTCOMES

FILE = {"content-type": "application/octet-stream"}


async def test_a_living_process_says_so(client, engine):
    engine.checks["engine"] = "failed"
    assert (await client.get("/health")).json() == {"status": "ok"}


async def test_a_server_is_ready_when_every_part_is(client):
    answer = await client.get("/ready")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "checks": {"engine": "ok", "store": "ok", "server": "ok"}}


async def test_a_server_that_is_not_ready_says_why(client, engine):
    engine.checks["store"] = "cannot be reached"
    answer = await client.get("/ready")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["status"] == "not_ready"
    assert answer.json()["checks"]["store"] == "cannot be reached"


async def test_a_draining_server_is_not_ready_and_takes_nothing_new(client, drain):
    drain.begin()
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["checks"]["server"]) == (503, "draining")
    for method, path in [("POST", "/v1/classify"), ("GET", "/v1/profiles"), ("PUT", "/v1/profiles/a")]:
        refused = await client.request(method, path)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        # Else a client that keeps its connections would find no other server before this one has gone.
        assert refused.headers["connection"] == "close"
        assert refused.json()["error"]["code"] == "draining"
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/metrics")).status_code == 200


async def test_info_tells_model_bank_and_limits(client, engine, settings):
    info = (await client.get("/info")).json()
    assert info["plm"] == "tiny"
    assert info["store"] == "memory"
    assert info["bank"] == {
        "fingerprint": engine.geometry.fingerprint,
        "blocks": 2,
        "adapters": 16,
        "hidden": 8,
        "width": 4,
        "layer_norm": True,
        "shared_heads": {"mood": ["sad", "glad"]},
    }
    assert info["limits"]["max_profile_bytes"] == settings.max_profile_bytes
    assert info["limits"]["context_length"] == 512
    assert info["limits"]["max_total_tokens"] == 0


async def test_info_tells_a_shorter_limit_for_texts_that_are_generated(client, engine):
    engine.info = dataclasses.replace(engine.info, generates=True, max_total_tokens=256)
    limits = (await client.get("/info")).json()["limits"]
    assert (limits["context_length"], limits["max_total_tokens"]) == (512, 256)


async def test_metrics_show_every_route_and_outcome_at_zero(client, metric):
    text = (await client.get("/metrics")).text
    for route in (*ACCESS, UNMATCHED):
        for outcome in OUTCOMES:
            assert f'xpeft_requests_total{{outcome="{outcome}",route="{route}"}} ' in text
    assert metric('xpeft_requests_total{outcome="cancelled",route="/v1/classify"}') == 0


async def test_metrics_name_their_format(client):
    media_type = (await client.get("/metrics")).headers["content-type"]
    assert media_type.startswith("text/plain; version=0.0.4")


async def test_head_is_answered_wherever_get_is(client):
    for path in ("/health", "/ready", "/info", "/metrics", "/v1/models", "/v1/profiles", "/openapi.json"):
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b""), path


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/completions", "/v1/chat/completions"])
async def test_an_encoder_does_not_generate(client, path):
    answer = await client.post(path, json={"model": "p", "prompt": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_does_not_generate")


async def test_models_are_the_profiles_in_pages(client, profile_file):
    for name in ("b", "a", "c"):
        await client.put(f"/v1/profiles/{name}", content=profile_file(1), headers=FILE)
    first = (await client.get("/v1/models?limit=2")).json()
    assert [model["id"] for model in first["data"]] == ["a", "b"]
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("a", "b", True)
    assert first["data"][0]["object"] == "model"
    assert first["data"][0]["owned_by"] == "default"
    rest = (await client.get(f"/v1/models?after={first['last_id']}")).json()
    assert ([model["id"] for model in rest["data"]], rest["has_more"]) == (["c"], False)


async def test_no_models_are_an_empty_page(client):
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert (await client.get("/v1/models")).json() == empty


async def test_the_bare_model_comes_first_where_it_generates(client, engine, profile_file):
    engine.info = dataclasses.replace(engine.info, generates=True)
    await client.put("/v1/profiles/a", content=profile_file(1), headers=FILE)
    assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == ["base", "a"]
    one = (await client.get("/v1/models?limit=1")).json()
    assert ([model["id"] for model in one["data"]], one["has_more"]) == (["base"], True)
    assert [model["id"] for model in (await client.get("/v1/models?after=base")).json()["data"]] == ["a"]


async def test_a_bad_after_is_422(client):
    answer = await client.get("/v1/models?after=../x")
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "after")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/classify/", "/v1/nothing", "/docs", "/redoc", "/health/"])
async def test_an_unknown_path_is_404_in_the_envelope_and_one_series(client, metric, path):
    answer = await client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert metric('xpeft_requests_total{outcome="client_error",route="unmatched"}') == 1


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/classify", "POST"),
        ("PATCH", "/v1/profiles/a", "DELETE, GET, HEAD, PUT"),
        ("OPTIONS", "/v1/profiles/a", "DELETE, GET, HEAD, PUT"),
        ("POST", "/v1/profiles", "GET, HEAD"),
        ("POST", "/health", "GET, HEAD"),
        ("BREW", "/metrics", "GET, HEAD"),
        ("GET", "/v1/chat/completions", "POST"),
    ],
)
async def test_another_method_is_405_and_says_which_are_allowed(client, method, path, allowed):
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/classify"])
async def test_every_answer_has_a_request_id(client, path):
    ids = {(await client.get(path)).headers["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert (await client.get(path, headers={"x-request-id": "Trace-1.a_b"})).headers["x-request-id"] == "Trace-1.a_b"


@pytest.mark.parametrize("sent", ["", "a b", "a\tb", "é", "a" * 129, "<script>"])
async def test_a_request_id_of_another_form_is_not_sent_back(client, sent):
    headers = [(b"x-request-id", sent.encode())]
    assert len((await client.get("/health", headers=headers)).headers["x-request-id"]) == 24


async def test_a_failing_probe_is_a_500_in_the_envelope(client, engine, caplog):
    def broken():
        raise KeyError("status")

    engine.status = broken
    answer = await client.get("/ready")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] in caplog.text

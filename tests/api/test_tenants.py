"""Keys, roles and tenants."""

from __future__ import annotations

import pytest

from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.api.access.table import ACCESS, PUBLIC
from xpeft_server.api.app import create_app

FILE = {"content-type": "application/octet-stream"}
CALLS = [
    (method, template.replace("{name}", "mine"))
    for template, methods in ACCESS.items()
    for method in methods
    if template not in PUBLIC
]


@pytest.mark.parametrize(("method", "path"), [*CALLS, ("GET", "/"), ("GET", "/v2/x"), ("DELETE", "/v1/classify")])
async def test_every_path_but_the_probes_is_401_without_a_key(keyed, method, path):
    for secret in (None, "made-up"):
        answer = await keyed(secret).request(method, path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert answer.json()["error"]["type"] == "authentication_error"
            assert "made-up" not in answer.text


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "acme-infer", "Basic acme-infer", "Token acme-infer", "Bearer acme-infer x"],
)
async def test_what_is_no_bearer_key_is_401(keyed, authorization):
    answer = await keyed(None).get("/v1/models", headers={"authorization": authorization})
    assert answer.status_code == 401


async def test_two_keys_are_none(keyed):
    headers = [("authorization", "Bearer acme-infer"), ("authorization", "Bearer other-admin")]
    assert (await keyed(None).get("/v1/models", headers=headers)).status_code == 401


async def test_the_scheme_is_case_insensitive(keyed):
    assert (await keyed(None).get("/v1/models", headers={"authorization": "bearer acme-infer"})).status_code == 200


async def test_the_probes_need_no_key(keyed):
    for path in ("/health", "/ready"):
        assert (await keyed(None).get(path)).status_code == 200
        assert (await keyed("made-up").get(path)).status_code == 200


ROLES = {
    "acme-admin": {"infer", "read", "write", "info"},
    "acme-infer": {"infer", "read", "info"},
    "ops": {"metrics", "info"},
}


@pytest.mark.parametrize("secret", ROLES)
async def test_a_role_may_do_what_the_table_says_and_nothing_else(keyed, profile_file, secret):
    client = keyed(secret)
    answers = {
        "infer": await client.post("/v1/classify", json={"profile": "p", "input": "a"}),
        "read": await client.get("/v1/profiles"),
        "write": await client.put("/v1/profiles/p", content=profile_file(1), headers=FILE),
        "metrics": await client.get("/metrics"),
        "info": await client.get("/info"),
    }
    allowed = {what for what, answer in answers.items() if answer.status_code < 300}
    assert allowed == ROLES[secret]
    for what in answers.keys() - allowed:
        assert (answers[what].status_code, answers[what].json()["error"]["code"]) == (403, "forbidden")
        role, needed = "operator" if secret == "ops" else "infer", "operator" if what == "metrics" else "admin"
        role = "admin" if secret == "acme-admin" else role
        message = answers[what].json()["error"]["message"]
        assert message.startswith(f"a key with the role {role} may not ")
        assert message.endswith((f"the role {needed} may", f"the role {needed} or infer may"))


async def test_an_operator_reads_no_tenants_data(keyed):
    for method, path in CALLS:
        if path.startswith("/v1/"):
            assert (await keyed("ops").request(method, path)).status_code == 403


@pytest.mark.parametrize("path", ["/metrics%0a", "/metrics%0A", "/metrics/", "//metrics", "/METRICS", "/metrics%20"])
async def test_a_variant_of_a_path_opens_nothing(keyed, path):
    assert (await keyed("acme-infer").get(path)).status_code == 404
    assert (await keyed(None).get(path)).status_code == 401


async def test_another_tenants_profile_does_not_exist(keyed, engine, store, profile_file):
    acme, other = keyed("acme-admin"), keyed("other-admin")
    assert (await acme.put("/v1/profiles/mine", content=profile_file(1), headers=FILE)).status_code == 201
    for answer in [
        await other.get("/v1/profiles/mine"),
        await other.get("/v1/profiles/mine", headers={"accept": "application/octet-stream"}),
        await other.head("/v1/profiles/mine"),
        await other.delete("/v1/profiles/mine"),
    ]:
        assert answer.status_code == 404
    assert (await other.get("/v1/profiles")).json()["data"] == []
    assert (await other.get("/v1/models")).json()["data"] == []
    await other.post("/v1/classify", json={"profile": "mine", "input": "a"})
    assert engine.seen[-1].profile == ("other", "mine")
    assert (await acme.get("/v1/profiles/mine")).status_code == 200


async def test_the_same_name_is_another_profile_for_another_tenant(keyed, profile_file):
    acme, other = keyed("acme-admin"), keyed("other-admin")
    await acme.put("/v1/profiles/mine", content=profile_file(1), headers=FILE)
    assert (await other.put("/v1/profiles/mine", content=profile_file(2), headers=FILE)).status_code == 201
    versions = {(await client.get("/v1/profiles/mine")).json()["version"] for client in (acme, other)}
    assert len(versions) == 2


async def test_open_metrics_need_no_key(settings, engine, store, tuner, key_file, metrics, audit):
    import httpx

    app = create_app(
        settings.model_copy(update={"metrics_open": True}),
        engine=engine,
        store=store,
        tuner=tuner,
        keys=KeyRing(key_file),
        metrics=metrics,
        audit=audit,
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        assert (await client.get("/metrics")).status_code == 200
        assert (await client.get("/info")).status_code == 401


async def test_no_secret_is_ever_logged(keyed, caplog):
    caplog.set_level("DEBUG")
    await keyed("acme-infer").get("/v1/models")
    await keyed("made-up-secret").get("/v1/models")
    assert "acme-infer" not in caplog.text
    assert "made-up-secret" not in caplog.text

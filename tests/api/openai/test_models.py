"""GET /v1/models/{name}."""

from __future__ import annotations

import dataclasses

import pytest

FILE = {"content-type": "application/octet-stream"}


async def test_a_model_is_the_line_of_the_list(client, profile_file):
    await client.put("/v1/profiles/support", content=profile_file(1), headers=FILE)
    listed = (await client.get("/v1/models")).json()["data"]
    answer = await client.get("/v1/models/support")
    assert (answer.status_code, answer.json()) == (200, listed[0])
    assert answer.json()["id"] == "support"


async def test_head_has_no_body(client, profile_file):
    await client.put("/v1/profiles/support", content=profile_file(1), headers=FILE)
    head = await client.head("/v1/models/support")
    assert (head.status_code, head.content) == (200, b"")
    assert (await client.head("/v1/models/other")).status_code == 404


async def test_an_unknown_model_is_404(client):
    answer = await client.get("/v1/models/other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "profile_not_found")
    assert "'other'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["", "a%20b", "org/model", "..%2fetc", "p" * 129])
async def test_what_is_no_name_is_422(client, name):
    answer = await client.get(f"/v1/models/{name}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_name")


@pytest.mark.parametrize("name", ["", "a%20b", "org/model", "p" * 129])
async def test_a_page_after_what_is_no_name_is_422_and_names_the_parameter(client, name):
    answer = await client.get(f"/v1/models?after={name}")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (422, "invalid_name", "after")
    assert error["message"].startswith("after: ")


async def test_the_bare_model_is_there_where_it_generates(client, engine):
    assert (await client.get("/v1/models/base")).status_code == 404
    engine.info = dataclasses.replace(engine.info, generates=True)
    answer = await client.get("/v1/models/base")
    assert answer.json() == (await client.get("/v1/models")).json()["data"][0]


async def test_a_page_that_the_bare_model_fills_has_more_behind_it_only_where_there_are_profiles(
    client, engine, profile_file
):
    engine.info = dataclasses.replace(engine.info, generates=True)
    for more in (False, True):
        page = (await client.get("/v1/models?limit=1")).json()
        assert ([line["id"] for line in page["data"]], page["has_more"]) == (["base"], more)
        await client.put("/v1/profiles/support", content=profile_file(1), headers=FILE)
    page = (await client.get("/v1/models?limit=1&after=base")).json()
    assert ([line["id"] for line in page["data"]], page["has_more"]) == (["support"], False)


async def test_a_model_of_another_tenant_is_not_there(keyed, profile_file):
    await keyed("acme-admin").put("/v1/profiles/mine", content=profile_file(1), headers=FILE)
    assert (await keyed("acme-infer").get("/v1/models/mine")).json()["owned_by"] == "acme"
    assert (await keyed("other-admin").get("/v1/models/mine")).status_code == 404
    assert (await keyed("ops").get("/v1/models/mine")).status_code == 403


async def test_another_method_is_405(client):
    answer = await client.delete("/v1/models/support")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_a_model_is_one_series_whatever_its_name(client, metric):
    for name in ("a", "b/c"):
        await client.get(f"/v1/models/{name}")
    assert metric('xpeft_requests_total{outcome="client_error",route="/v1/models/{name}"}') == 2

"""/v1/profiles: upload, show, fetch, delete and list."""

from __future__ import annotations

import pytest

from xpeft_profiles import ProfileKey, StoreUnavailable, encode_record, read_profile_file

FILE = {"content-type": "application/octet-stream"}
URL = "/v1/profiles/support"


async def put(client, content, url=URL, **headers):
    return await client.put(url, content=content, headers={**FILE, **headers})


async def test_an_upload_is_201_then_200_with_its_version_as_etag(client, profile_file, metric):
    created = await put(client, profile_file(1))
    assert created.status_code == 201
    version = created.json()["version"]
    assert created.headers["etag"] == f'"{version}"'
    identical = await put(client, profile_file(1))
    assert (identical.status_code, identical.json()["version"]) == (200, version)
    replaced = await put(client, profile_file(2))
    assert replaced.status_code == 200
    assert replaced.json()["version"] != version
    for outcome in ("created", "identical", "replaced"):
        assert metric(f'xpeft_profile_uploads_total{{outcome="{outcome}"}}') == 1


async def test_what_was_uploaded_is_shown(client, store, profile_file):
    data = profile_file(1)
    uploaded = (await put(client, data)).json()
    profile = read_profile_file(data)
    shown = await client.get(URL)
    assert shown.status_code == 200
    assert shown.headers["etag"] == f'"{profile.version}"'
    body = shown.json()
    assert body == uploaded
    stored = await store.get(ProfileKey("default", "support"))
    assert isinstance(body.pop("created"), int)
    assert isinstance(body.pop("updated"), int)
    assert body == {
        "object": "profile",
        "name": "support",
        "version": profile.version,
        "labels": ["refund", "baggage"],
        "shared_head": None,
        "bytes": len(stored.record),
        "bank": profile.bank,
        "hard": True,
        "k": 3,
        "description": None,
    }
    assert stored.record == encode_record(profile)


async def test_a_fetched_file_uploads_to_the_same_version(client, profile_file):
    version = (await put(client, profile_file(1))).json()["version"]
    fetched = await client.get(URL, headers={"accept": "application/octet-stream"})
    assert fetched.headers["content-type"] == "application/octet-stream"
    assert fetched.headers["vary"] == "accept"
    again = await put(client, fetched.content)
    assert (again.status_code, again.json()["version"]) == (200, version)


@pytest.mark.parametrize(
    ("accept", "is_file"),
    [
        ("application/octet-stream", True),
        ("application/octet-stream, */*;q=0.1", True),
        ("application/octet-stream, */*", True),
        ("application/json;q=0.5, application/octet-stream", True),
        ("application/json", False),
        ("*/*", False),
        ("application/octet-stream;q=0", False),
        ("application/octet-stream;q=0.1, application/json", False),
        ("application/octet-stream;q=x", False),
        ("text/html", False),
        ("", False),
    ],
)
async def test_accept_chooses_between_json_and_the_file(client, profile_file, accept, is_file):
    await put(client, profile_file(1))
    media_type = (await client.get(URL, headers={"accept": accept})).headers["content-type"]
    assert (media_type == "application/octet-stream") is is_file


async def test_head_has_the_headers_of_get_and_no_body(client, profile_file):
    await put(client, profile_file(1))
    shown, head = await client.get(URL), await client.head(URL)
    assert head.content == b""
    assert head.status_code == 200
    for name in ("etag", "content-length", "content-type", "vary"):
        assert head.headers[name] == shown.headers[name]
    assert (await client.head("/v1/profiles/nobody")).status_code == 404


async def test_a_deleted_profile_is_gone(client, profile_file):
    await put(client, profile_file(1))
    deleted = await client.delete(URL)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await client.get(URL)).status_code == 404
    again = await client.delete(URL)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "profile_not_found")


async def test_get_answers_304_to_who_has_the_version(client, profile_file):
    tag = (await put(client, profile_file(1))).headers["etag"]
    for known in (tag, f"W/{tag}", f'"old", {tag}', f'"old",,{tag}', f" , {tag} ,\t, ", "*"):
        answer = await client.get(URL, headers={"if-none-match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert (await client.get(URL, headers={"if-none-match": '"old"'})).status_code == 200


@pytest.mark.parametrize("star", ['"*"', 'W/"*"', '"*", "other"'])
async def test_a_star_in_quotes_is_a_version_that_nobody_has(client, profile_file, star):
    tag = (await put(client, profile_file(1))).headers["etag"]
    assert (await client.get(URL, headers={"if-none-match": star})).status_code == 200
    assert (await client.get(URL, headers={"if-none-match": f"{star}, {tag}"})).status_code == 304
    assert (await put(client, profile_file(2), **{"if-match": star})).status_code == 412
    assert (await client.delete(URL, headers={"if-match": star})).status_code == 412
    assert (await client.get(URL)).headers["etag"] == tag
    assert (await put(client, profile_file(2), **{"if-match": f"{star}, {tag}"})).status_code == 200
    assert (await put(client, profile_file(3), **{"if-none-match": star})).status_code == 200


async def test_preconditions_of_an_upload(client, profile_file):
    refused = await put(client, profile_file(1), **{"if-match": "*"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (412, "precondition_failed")
    assert (await client.get(URL)).status_code == 404
    created = await put(client, profile_file(1), **{"if-none-match": "*"})
    assert created.status_code == 201
    tag = created.headers["etag"]
    assert (await put(client, profile_file(2), **{"if-none-match": "*"})).status_code == 412
    assert (await put(client, profile_file(2), **{"if-none-match": f"W/{tag}"})).status_code == 412
    assert (await put(client, profile_file(2), **{"if-match": '"other"'})).status_code == 412
    assert (await put(client, profile_file(2), **{"if-match": f"W/{tag}"})).status_code == 412
    assert (await client.get(URL)).headers["etag"] == tag
    assert (await put(client, profile_file(2), **{"if-match": f'"other", ,{tag},'})).status_code == 200
    assert (await put(client, profile_file(3), **{"if-match": "*"})).status_code == 200


async def test_preconditions_of_a_deletion(client, profile_file):
    assert (await client.delete(URL, headers={"if-match": '"x"'})).status_code == 412
    tag = (await put(client, profile_file(1))).headers["etag"]
    assert (await client.delete(URL, headers={"if-match": '"x"'})).status_code == 412
    assert (await client.delete(URL, headers={"if-match": tag})).status_code == 204


@pytest.mark.parametrize("value", ["abc", '"abc', 'abc"', '"a" "b"', '"a",b', ", ,", "", "w/*", "*, *", 'w/"a"', '""a'])
async def test_a_precondition_that_is_no_list_of_tags_is_400(client, profile_file, value):
    for name in ("if-match", "if-none-match"):
        answer = await put(client, profile_file(1), **{name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


BAD_NAMES = [
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "a%2Fb",
    "a/b",
    "",
    ".hidden",
    "-flag",
    "a b",
    "a%00b",
    "a%0a",
    "%0aa",
    "ü",
    "%ff",
    "a:b",
    "a\\b",
    "a*",
    "a" * 129,
    "a" * 3000,
]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_what_is_no_name_is_422_for_every_method(client, store, profile_file, name):
    url = f"http://server/v1/profiles/{name}"
    for answer in [
        await put(client, profile_file(1), url=url),
        await client.get(url),
        await client.delete(url),
    ]:
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_name")
        assert len(answer.content) < 500
    assert (await store.list("default", limit=1)).profiles == ()


async def test_base_is_reserved(client, profile_file):
    answer = await put(client, profile_file(1), url="/v1/profiles/base")
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "reserved_name")
    assert (await client.get("/v1/profiles/base")).status_code == 404


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "invalid_profile"),
        (b"no safetensors", 422, "invalid_profile"),
        (b"\xff" * 100, 422, "invalid_profile"),
        (b"\x00" * 2049, 413, "body_too_large"),
    ],
)
async def test_what_is_no_profile_is_refused_and_nothing_is_stored(client, store, metric, content, status, code):
    answer = await put(client, content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (await store.list("default", limit=1)).profiles == ()
    assert metric('xpeft_profile_uploads_total{outcome="refused"}') == 1


async def test_an_upload_without_a_length_is_cut_off_at_the_limit(client):
    async def endless():
        while True:
            yield b"\x00" * 512

    assert (await put(client, endless())).status_code == 413


async def test_another_banks_profile_is_409(client, profile_file):
    answer = await put(client, profile_file(1, bank="sha256:" + "00" * 32))
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "wrong_bank")
    assert "ab" * 32 in answer.json()["error"]["message"]


async def test_a_profile_of_another_shape_is_422_and_names_the_tensor(client, profile_file):
    answer = await put(client, profile_file(1, hidden=9))
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "head.weight")


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", ""])
async def test_another_content_type_is_415(client, profile_file, media_type):
    answer = await client.put(URL, content=profile_file(1), headers={"content-type": media_type})
    assert answer.status_code == 415


async def test_profiles_are_listed_by_name_in_pages(client, profile_file):
    for name in ("b", "a", "c"):
        await put(client, profile_file(1), url=f"/v1/profiles/{name}")
    first = (await client.get("/v1/profiles", params={"limit": 2})).json()
    assert [line["name"] for line in first["data"]] == ["a", "b"]
    assert set(first["data"][0]) == {"name", "version", "labels", "bytes", "created", "updated"}
    assert first["data"][0]["labels"] == ["refund", "baggage"]
    rest = (await client.get("/v1/profiles", params={"cursor": first["next_cursor"]})).json()
    assert ([line["name"] for line in rest["data"]], rest["next_cursor"]) == (["c"], None)
    some = (await client.get("/v1/profiles", params={"prefix": "c"})).json()
    assert [line["name"] for line in some["data"]] == ["c"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "limit=-1", "limit=", "limit=1.5", "limit=" + "9" * 5000]
)
async def test_a_limit_out_of_range_is_422(client, query):
    for path in ("/v1/profiles", "/v1/models"):
        answer = await client.get(f"{path}?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "limit")


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("cursor=!!", "invalid_cursor", "cursor"),
        ("tempo=1", "unknown_parameter", "tempo"),
        ("limit=1&limit=2", "invalid_parameter", "limit"),
    ],
)
async def test_a_bad_parameter_is_422_and_named(client, query, code, param):
    for path in ("/v1/profiles", "/v1/jobs"):
        answer = await client.get(f"{path}?{query}")
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (422, code, param)


async def test_a_store_that_is_down_is_503_with_retry_after(client, store, profile_file, monkeypatch, metric):
    async def down(*_args, **_kwargs):
        raise StoreUnavailable("nobody answers")

    for name in ("get", "put", "delete", "list"):
        monkeypatch.setattr(store, name, down)
    for answer in [
        await put(client, profile_file(1)),
        await client.get(URL),
        await client.delete(URL),
        await client.get("/v1/profiles"),
        await client.get("/v1/models"),
    ]:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
    assert metric('xpeft_profile_uploads_total{outcome="failed"}') == 1

"""The OpenAPI document against the routes and the table of access."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from xpeft_profiles import StoreUnavailable
from xpeft_server.api.access.table import ACCESS, PROFILE, PUBLIC, TUNE
from xpeft_server.api.generation.wire import GenerateBody
from xpeft_server.api.openai.chat_wire import ChatBody, MessageBody, TextPartBody
from xpeft_server.api.openai.completions_wire import CompletionBody
from xpeft_server.api.openai.wire import StreamOptionsBody
from xpeft_server.api.tuning.wire import TuneBody, TuningCompletionBody, TuningExampleBody, TuningSettingsBody
from xpeft_server.api.wire import ClassifyBody, TextPairBody

DOCUMENT = "/openapi.json"
# What every client of HTTP knows without being told.
OF_HTTP = {"content-type", "content-length", "vary", "cache-control"}
NAMED = {"profile": "p", "model": "p"}
# A value of each type with nothing that its other fields could be in the way of.
BODIES = [
    (ClassifyBody, {**NAMED, "input": "a"}),
    (TextPairBody, {"text": "a"}),
    (GenerateBody, {**NAMED, "prompt": "a"}),
    (CompletionBody, {"model": "p", "prompt": "a", "stream": True}),
    (StreamOptionsBody, {}),
    (ChatBody, {"model": "p", "messages": [{"role": "user", "content": "a"}], "stream": True, "logprobs": True}),
    (MessageBody, {"role": "user", "content": "a"}),
    (TextPartBody, {"type": "text", "text": "a"}),
    (TuneBody, {"examples": [{"text": "a", "label": "b"}]}),
    (TuningExampleBody, {"text": "a", "label": "b"}),
    (TuningCompletionBody, {"prompt": "a", "completion": "b"}),
    (TuningSettingsBody, {}),
]
TUNED = {"examples": [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]}


@pytest.fixture
async def document(client):
    return (await client.get(DOCUMENT)).json()


def test_the_table_of_access_has_every_route_and_no_other(app):
    allowed = {(template, method) for template, methods in ACCESS.items() for method in methods}
    assert app.handlers().keys() == {pair for pair in allowed if pair[0] != DOCUMENT}
    assert {route.path for route in app.routes} == {DOCUMENT}


async def test_every_operation_is_documented(document):
    documented = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    allowed = {(template, method) for template, methods in ACCESS.items() for method in methods if method != "HEAD"}
    assert documented == {pair for pair in allowed if pair[0] != DOCUMENT}


async def test_operations_have_ids_of_their_own(document):
    ids = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


async def test_every_reference_leads_somewhere(document):
    def references(node):
        if isinstance(node, dict):
            if "$ref" in node:
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    found = set(references(document))
    assert "#/components/schemas/ClassifyBody" in found
    for reference in found:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]


async def test_every_error_is_the_envelope(document):
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400 and path != "/ready":
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}, (path, status)


async def test_an_answer_has_the_content_that_it_is_sent_with(document):
    def content(path, method, status):
        return set(document["paths"][path][method]["responses"][status].get("content", {}))

    assert content("/metrics", "get", "200") == {"text/plain"}
    assert content("/metrics", "get", "401") == {"application/json"}
    profile = "/v1/profiles/{name}"
    assert content(profile, "get", "200") == {"application/json", "application/octet-stream"}
    assert content(profile, "get", "304") == content(profile, "delete", "204") == set()


def valid(document, name, value):
    """Whether the document's type of this name allows the value."""
    return _validator(document, {"$ref": f"#/components/schemas/{name}"}).is_valid(value)


def _validator(document, schema):
    return Draft202012Validator({**schema, "components": document["components"]})


async def test_what_the_document_shows_is_what_it_allows(document):
    schemas = document["components"]["schemas"]
    shown = [(schema, example) for schema in schemas.values() for example in schema.get("examples", ())]
    fields = [field for schema in schemas.values() for field in schema["properties"].values()]
    shown += [(field, field["default"]) for field in fields if "default" in field]
    for schema, value in shown:
        _validator(document, schema).validate(value)
    assert "default" in schemas["TuningMeasureBody"]["properties"]["majority"]


@pytest.mark.parametrize(("wire_type", "body"), BODIES, ids=lambda each: getattr(each, "__name__", ""))
async def test_the_document_and_the_server_agree_on_what_a_field_may_be(document, wire_type, body):
    def taken(value):
        try:
            wire_type.model_validate(value)
        except ValidationError:
            return False
        return True

    # Names are checked behind the type, see below.
    for field in wire_type.model_fields.keys() - {"profile", "model"}:
        for value in (None, True, 1, 1.0, 1.5, -1, 1e30, "", "a", [], {}):
            changed = {**body, field: value}
            assert valid(document, wire_type.__name__, changed) is taken(changed), (field, value)


@pytest.mark.parametrize("body", [{"input": "a"}, {"prompt": "a"}])
async def test_the_document_says_that_a_profile_is_needed_and_how_it_is_written(document, body):
    name = "ClassifyBody" if "input" in body else "GenerateBody"
    for named in ({"profile": "p"}, {"model": "p"}, {"profile": None, "model": "p"}):
        assert valid(document, name, {**body, **named})
    for named in ({}, {"profile": None}, {"profile": "a b"}, {"model": "a" * 129}, {"profile": ""}):
        assert not valid(document, name, {**body, **named})


async def test_an_answer_has_the_headers_that_the_document_says(
    client, keyed, document, engine, store, worker, profile_file, monkeypatch
):
    async def check(path, method, status, answer):
        assert answer.status_code == status
        headers = document["paths"][path][method]["responses"][str(status)]["headers"]
        announced = {name.lower(): header["required"] for name, header in headers.items()}
        assert set(answer.headers) <= announced.keys() | OF_HTTP
        assert {name for name, always in announced.items() if always} <= set(answer.headers)
        for name, header in headers.items():
            if header["schema"]["type"] in ("number", "integer") and name in answer.headers:
                Draft202012Validator(header["schema"]).validate(float(answer.headers[name]))

    def put(seed):
        headers = {"content-type": "application/octet-stream"}
        return client.put("/v1/profiles/p", content=profile_file(seed), headers=headers)

    async def down(*_args, **_kwargs):
        raise StoreUnavailable("nobody answers")

    body = {"profile": "p", "input": "a"}
    created = await put(1)
    await check(PROFILE, "put", 201, created)
    await check(PROFILE, "put", 200, await put(2))
    await check(PROFILE, "get", 200, await client.get("/v1/profiles/p"))
    await check(PROFILE, "get", 304, await client.get("/v1/profiles/p", headers={"if-none-match": "*"}))
    await check("/v1/profiles", "get", 200, await client.get("/v1/profiles"))
    await check("/v1/classify", "post", 200, await client.post("/v1/classify", json=body))
    await check("/v1/classify", "post", 422, await client.post("/v1/classify", json={}))
    await check("/v1/classify", "post", 401, await keyed(None).post("/v1/classify", json=body))
    await check(TUNE, "post", 202, await client.post("/v1/profiles/p/tune", json=TUNED))
    await check(PROFILE, "delete", 204, await client.delete("/v1/profiles/p"))
    await check("/ready", "get", 200, await client.get("/ready"))
    engine.full = True
    await check("/v1/classify", "post", 429, await client.post("/v1/classify", json=body))
    engine.checks["store"] = "nobody answers"
    await check("/ready", "get", 503, await client.get("/ready"))
    monkeypatch.setattr(store, "get", down)
    await check(PROFILE, "get", 503, await client.get("/v1/profiles/p"))


async def test_bodies_and_answers_have_examples(document):
    schemas = document["components"]["schemas"]
    for name in ("ClassifyBody", "ClassifyReplyBody", "ProfileBody", "TuneBody", "TuningJobBody", "ErrorEnvelope"):
        assert schemas[name]["examples"]


async def test_every_path_but_the_probes_names_the_key(document):
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert ("security" in operation) is (path not in PUBLIC)


async def test_an_example_of_the_document_is_answered(client, document):
    for example in document["components"]["schemas"]["ClassifyBody"]["examples"]:
        assert (await client.post("/v1/classify", json=example)).status_code == 200

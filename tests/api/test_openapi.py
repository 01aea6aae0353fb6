"""The OpenAPI document against the routes and the table of access."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute

from xpeft_server.api.access import ACCESS, PUBLIC

DOCUMENT = "/openapi.json"


@pytest.fixture
async def document(client):
    return (await client.get(DOCUMENT)).json()


def test_the_table_of_access_has_every_route_and_no_other(app):
    routed = {
        (route.path_format, method) for route in app.routes if isinstance(route, APIRoute) for method in route.methods
    }
    allowed = {(template, method) for template, methods in ACCESS.items() for method in methods}
    assert routed == {pair for pair in allowed if pair[0] != DOCUMENT}
    assert {route.path for route in app.routes if not isinstance(route, APIRoute)} == {DOCUMENT}


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

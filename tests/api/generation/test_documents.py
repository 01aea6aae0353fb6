"""The OpenAPI document of the generating routes."""

from __future__ import annotations

import pytest

ROUTES = {
    "/v1/generate": ("GenerateBody", "GenerateReplyBody"),
    "/v1/completions": ("CompletionBody", "CompletionReplyBody"),
    "/v1/chat/completions": ("ChatBody", "ChatReplyBody"),
}


@pytest.fixture
async def document(client):
    return (await client.get("/openapi.json")).json()


@pytest.mark.parametrize("path", ROUTES)
async def test_bodies_and_answers_are_documented_with_examples(document, path):
    operation = document["paths"][path]["post"]
    body, reply = ROUTES[path]
    schemas = document["components"]["schemas"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(f"/{body}")
    content = operation["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith(f"/{reply}")
    assert set(content) == {"application/json", "text/event-stream"}
    assert schemas[body]["examples"]
    assert schemas[reply]["examples"]
    assert {"400", "404", "409", "413", "415", "422", "429", "503"} <= set(operation["responses"])


@pytest.mark.parametrize("path", ROUTES)
async def test_the_examples_of_bodies_are_answered(client, document, path):
    for example in document["components"]["schemas"][ROUTES[path][0]]["examples"]:
        assert (await client.post(path, json=example)).status_code == 200, example


@pytest.mark.parametrize("path", ROUTES)
async def test_an_answer_has_the_fields_that_the_document_shows(client, document, path):
    body, reply = (document["components"]["schemas"][name] for name in ROUTES[path])
    answer = (await client.post(path, json=body["examples"][0])).json()
    assert set(answer) == set(reply["examples"][0])
    assert set(reply["required"]) <= set(answer) <= set(reply["properties"])


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["p", "base"])
async def test_an_answer_has_the_headers_that_the_document_says(client, document, path, stream, name):
    headers = document["paths"][path]["post"]["responses"]["200"]["headers"]
    asked = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {"prompt": "a"}
    answer = await client.post(path, json={"model": name, "stream": stream, **asked})
    assert answer.status_code == 200
    sent = set(answer.headers) - {"content-type", "content-length", "cache-control", "x-accel-buffering"}
    assert {each.lower() for each, header in headers.items() if header["required"]} <= sent
    assert sent <= {each.lower() for each in headers}
    assert ("x-profile-version" in sent) is (name == "p")
    assert ("x-inference-time" in sent) is not stream


async def test_a_field_that_is_not_supported_is_documented_as_such(document):
    fields = document["components"]["schemas"]["ChatBody"]["properties"]
    assert fields["n"]["enum"] == [1, None]
    assert fields["n"]["description"].startswith("Not supported")
    assert fields["tools"]["enum"] == [[], None]

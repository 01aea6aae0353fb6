"""A client that goes away takes its request with it."""

from __future__ import annotations

import pytest

BODIES = {
    "/v1/generate": {"model": "p", "prompt": "a"},
    "/v1/completions": {"model": "p", "prompt": "a"},
    "/v1/chat/completions": {"model": "p", "messages": [{"role": "user", "content": "a"}]},
}
# Of the script: before its first token, after it, after a piece of text.
PLACES = [0, 1, 2]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_leaves_withdraws_its_request(post, script, metric, path, stream, place):
    script.hold(after=place)
    client = post(path, **BODIES[path], stream=stream)
    await script.waiting.wait()
    await client.leave()
    assert script.withdrawn == [script.asked[0].prompt]
    assert metric(f'xpeft_requests_total{{outcome="cancelled",route="{path}"}}') == 1
    assert metric(f'xpeft_requests_total{{outcome="server_error",route="{path}"}}') == 0
    assert (client.start is not None) is (stream and place > 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_withdraws_all_its_prompts(post, script, stream):
    script.hold(after=2)
    script.of["done"] = [line for line in script.lines if not hasattr(line, "wait")]
    client = post("/v1/completions", model="p", prompt=["a", "done", "c"], stream=stream)
    await script.waiting.wait()
    if stream:
        while b'"finish_reason":"stop"' not in await client.part():
            pass
    await client.leave()
    assert sorted(script.withdrawn) == ["a", "c"]


async def test_a_neighbour_of_a_client_that_leaves_gets_its_whole_answer(post, script):
    gate = script.hold(after=2)
    leaving = post("/v1/generate", model="p", prompt="leaving", stream=True)
    staying = post("/v1/generate", model="p", prompt="staying", stream=True)
    assert b"Hel" in await leaving.part()
    assert b"Hel" in await staying.part()
    await leaving.leave()
    gate.set()
    assert b'"lo"' in await staying.part()
    assert (await staying.part()).endswith(b"data: [DONE]\n\n")
    assert script.withdrawn == ["leaving"]

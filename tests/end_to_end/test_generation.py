"""A server that generates, under clients that do anything: everybody gets one end, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

PROFILES = 10
CLIENTS = 24
REQUESTS = 1000 if os.environ.get("NIGHTLY") == "1" else 400
BEGINNING = " ".join(f"w{number}" for number in range(70))


@pytest.fixture(scope="module")
def writer(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, server_of: Callable[..., Any]) -> Iterator[Any]:
    """A server over a tiny decoder with room for three long texts and no time to drain, and ten profiles."""
    folder = tmp_path_factory.mktemp("long-llama") / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    room = ("--kv-tokens", "800", "--slots", "6", "--drain-seconds", "0")
    started = server_of("--plm", str(folder), "--store", "memory://", *room)
    started.wait_until_ready()
    for number in range(PROFILES):
        assert started.put(f"p{number}", started.profile(number)).status_code == 201
    yield started
    if started.process.poll() is None:
        assert started.stop() == 0


def body_of(rng: random.Random, **rest: Any) -> dict[str, Any]:
    prompt = " ".join(f"w{rng.randrange(100)}" for _ in range(rng.randrange(1, 60)))
    if rng.random() < 0.2:
        prompt = f"{BEGINNING} {prompt}"
    body = {"profile": f"p{rng.randrange(PROFILES)}", "prompt": prompt, "max_new_tokens": rng.randrange(1, 120)}
    return body | {"temperature": rng.choice([0, 0.9]), "seed": rng.randrange(9)} | rest


BAD: list[tuple[dict[str, Any], int]] = [
    ({"prompt": ""}, 422),
    ({"prompt": [5000]}, 422),
    ({"prompt": "w1 " * 300}, 422),
    ({"profile": "nobody"}, 404),
    ({"temperature": -1}, 422),
    ({"nonsense": 1}, 422),
    ({"stop": [""]}, 422),
    ({"max_new_tokens": 0}, 422),
]


def events_of(text: str) -> list[Any]:
    events = [event.removeprefix("data: ") for event in text.split("\n\n") if event.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


async def whole(client: httpx.AsyncClient, rng: random.Random) -> None:
    answer = await client.post("/v1/generate", json=body_of(rng))
    assert answer.status_code == 200, answer.text
    assert answer.json()["finish_reason"] in ("stop", "length")


async def streamed(client: httpx.AsyncClient, rng: random.Random) -> None:
    answer = await client.post("/v1/generate", json=body_of(rng, stream=True))
    assert answer.status_code == 200, answer.text
    events = events_of(answer.text)
    assert ["finish_reason" in event for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["usage"]["completion_tokens"] >= 1


async def broken_off(client: httpx.AsyncClient, rng: random.Random) -> None:
    async with client.stream("POST", "/v1/generate", json=body_of(rng, stream=True)) as answer:
        assert answer.status_code == 200
        seen = 0
        async for _ in answer.aiter_lines():
            seen += 1
            if seen > rng.randrange(1, 30):
                break


async def given_up(client: httpx.AsyncClient, rng: random.Random) -> None:
    asking = asyncio.create_task(client.post("/v1/generate", json=body_of(rng)))
    for _ in range(rng.randrange(200)):
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def refused(client: httpx.AsyncClient, rng: random.Random) -> None:
    change, status = rng.choice(BAD)
    answer = await client.post("/v1/generate", json=body_of(rng) | change)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def classified(client: httpx.AsyncClient, rng: random.Random) -> None:
    answer = await client.post("/v1/classify", json={"profile": f"p{rng.randrange(PROFILES)}", "input": "w1 w2 w3"})
    assert answer.status_code == 200, answer.text


async def chatted(client: httpx.AsyncClient, rng: random.Random) -> None:
    body = {"model": "p1", "prompt": ["w1 w2", "w3"], "max_tokens": 9, "stream": rng.random() < 0.5}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text


KINDS = [whole, whole, streamed, streamed, broken_off, given_up, refused, classified, chatted]


def storm(address: str, count: int, seed: int) -> Counter[str]:
    """``count`` requests of all kinds from clients that never rest; each checks its own answer."""
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    jobs = [KINDS[rng.randrange(len(KINDS))] for _ in range(count)]

    async def client_loop() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=60) as client:
            while jobs:
                kind = jobs.pop()
                await kind(client, rng)
                done[kind.__name__] += 1

    async def everybody() -> None:
        await asyncio.gather(*(client_loop() for _ in range(CLIENTS)))

    asyncio.run(everybody())
    return done


def resident_bytes(server: Any) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_hundreds_of_requests_in_disorder_get_one_end_each_and_nothing_is_left_of_them(writer: Any, until: Any) -> None:
    address = str(writer.client.base_url)
    storm(address, REQUESTS // 4, seed=1)
    before = resident_bytes(writer)
    done = storm(address, REQUESTS, seed=2)
    assert sum(done.values()) == REQUESTS
    assert min(done[kind.__name__] for kind in KINDS) > REQUESTS / 20
    assert writer.metric("preemptions_total") > 0
    for series in ('kv_tokens{state="used"}', "requests_running", "requests_waiting"):
        until(lambda series=series: writer.metric(series) == 0)
    assert writer.metric('kv_tokens{state="free"}') + writer.metric('kv_tokens{state="cached"}') == 800
    assert writer.metric("prefix_cache_hits_total") > 0
    assert writer.metric('requests_total{outcome="server_error",route="/v1/generate"}') == 0
    assert writer.metric('requests_total{outcome="cancelled",route="/v1/generate"}') > REQUESTS / 20
    assert resident_bytes(writer) < before * 1.05 + (8 << 20)


def test_an_answer_over_http_is_the_same_streamed_or_whole_alone_or_in_a_crowd(writer: Any) -> None:
    body = {"profile": "p3", "prompt": "w5 w6 w7", "max_new_tokens": 60}
    alone = writer.client.post("/v1/generate", json=body)
    assert alone.headers["x-profile-version"] == writer.versions()["p3"]
    text = alone.json()["text"]
    assert len(text.split()) > 3

    async def crowd() -> list[str]:
        async with httpx.AsyncClient(base_url=str(writer.client.base_url), timeout=60) as client:
            others = [
                client.post("/v1/generate", json=body | {"profile": f"p{n % 10}", "stream": n % 2 == 1})
                for n in range(40)
            ]
            answers = await asyncio.gather(*others)
        texts = []
        for number, answer in enumerate(answers):
            assert answer.status_code == 200, answer.text
            if number % 10 == 3:
                events = events_of(answer.text)
                texts.append("".join(event["text"] for event in events))
        return texts

    assert set(asyncio.run(crowd())) == {text}


def test_clients_are_told_how_many_tokens_of_their_prompts_were_cached(writer: Any) -> None:
    beginning = " ".join(f"w{number}" for number in reversed(range(70)))
    answers = []
    for model, last, stream in (("p1", "w1", False), ("p1", "w2", False), ("p1", "w3", True), ("p2", "w1", False)):
        body = {"model": model, "prompt": f"{beginning} {last}", "max_tokens": 4, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = writer.client.post("/v1/completions", json=body)
        answers.append(events_of(answer.text)[-1] if stream else answer.json())
    assert [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers] == [0, 64, 64, 0]


def test_a_stream_that_the_server_has_to_end_says_so(writer: Any) -> None:
    """SIGTERM with no time to drain: who is in mid-stream gets an error event, not silence. The server ends here."""
    body = {"profile": "base", "prompt": "w1", "max_new_tokens": 200, "temperature": 1, "seed": 1, "stream": True}
    with writer.client.stream("POST", "/v1/generate", json=body) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        assert first.startswith("data: ")
        writer.process.terminate()
        rest = [line for line in lines if line.startswith("data: ")]
    assert rest[-1] == "data: [DONE]" or "error" in json.loads(rest[-1].removeprefix("data: "))
    assert writer.end() == 0

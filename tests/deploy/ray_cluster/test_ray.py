"""The application on a real Ray: asked over HTTP, and hurt."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from xpeft_server.cli.heap import TUNABLES, VARIABLE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

PROFILES: Final = 6
SECONDS: Final = 120
CLASSIFYING: Final = 3
# Each of two replicas has some of them, as a rule: it never has more than 1.25 times its part.
WRITING: Final = 15


def test_the_command_of_the_page_starts_two_engines_behind_one_address(application: Any) -> None:
    assert len(application.engines()) == 2
    assert application.client.get("/ready").json()["checks"] == {"engine": "ok", "store": "ok", "server": "ok"}
    answer = application.classify("p0")
    assert answer.status_code == 200
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert "queue" in answer.headers["server-timing"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_engines_on_processors_begin_with_the_heap_that_a_server_gives_itself(application: Any) -> None:
    # When glibc reads them, it puts zeros between them.
    wanted = f"\0{VARIABLE}={TUNABLES}\0".replace(":", "\0").encode()
    for process in application.engines():
        assert wanted in Path(f"/proc/{process}/environ").read_bytes().replace(b":", b"\0")


def test_who_asks_for_the_access_log_gets_it_whatever_else_is_logged(application: Any, until: Any) -> None:
    application.client.get("/v1/profiles", headers={"x-request-id": "asked-and-logged"})
    until(lambda: application.ray.logged("asked-and-logged"), "a line of the access log")


def test_errors_of_an_engine_come_back_as_themselves(application: Any) -> None:
    unknown = application.classify("nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "profile_not_found")
    long = application.client.post("/v1/classify", json={"profile": "p0", "input": "w1 " * 5000})
    assert (long.status_code, long.json()["error"]["code"]) == (422, "input_too_long")
    prompt = {"profile": "p0", "prompt": "w1 " * 5000, "stream": True}
    assert application.client.post("/v1/generate", json=prompt).status_code == 422


def test_a_profile_that_is_asked_for_again_and_again_is_answered_by_one_replica(application: Any, until: Any) -> None:
    def told() -> dict[str, float]:
        """The texts of each replica, once it has told of all of them."""
        texts = application.by_replica("xpeft_batch_size_sum")
        return texts if sum(texts.values()) == application.texts else {}

    application.classify("p0")
    before = until(told, "all texts in the metrics")
    for _ in range(10):
        assert application.classify("p3").status_code == 200
    after = until(told, "ten texts more in the metrics")
    told_more = sorted(after[name] - before[name] for name in before)
    # It may still count as busy with what was asked before, when the first of them comes; then another gets that one.
    assert sum(told_more) == 10
    assert told_more[-1] >= 9


async def test_an_upload_is_what_every_later_request_gets_from_both_replicas(application: Any, until: Any) -> None:
    batches = application.by_replica("xpeft_batch_size_count")
    async with httpx.AsyncClient(base_url=application.url, timeout=60) as client:
        body = {"profile": "fresh", "input": ["w1 w2 w3"] * 8}
        for index in range(6):
            version = await asyncio.to_thread(application.put, "fresh", 100 + index)
            answers = await asyncio.gather(*(client.post("/v1/classify", json=body) for _ in range(12)))
            assert {answer.headers.get("x-profile-version") for answer in answers} == {version}
    until(lambda: len(_grown(application, batches)) == 2, "batches of both replicas")


def _grown(application: Any, before: Mapping[str, float]) -> list[str]:
    now = application.by_replica("xpeft_batch_size_count")
    return [name for name, count in now.items() if count > before.get(name, 0)]


def test_a_stream_is_the_text_that_is_written_at_once(application: Any) -> None:
    body = {"profile": "p1", "prompt": "w1 w2", "max_new_tokens": 30}
    whole = application.client.post("/v1/generate", json=body).json()
    lines = application.client.post("/v1/generate", json={**body, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    documents = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(document["text"] for document in documents) == whole["text"]
    assert documents[-1]["usage"] == whole["usage"]


def test_a_client_that_leaves_ends_its_text_in_the_engine(application: Any, until: Any) -> None:
    written = application.total("xpeft_generation_tokens_total")
    gone = application.total("xpeft_requests_total", route="/v1/generate", outcome="cancelled")
    body = {"profile": "p2", "prompt": "w1 w2", "max_new_tokens": 4000, "stream": True}
    with application.client.stream("POST", "/v1/generate", json=body) as answer:
        for number, _ in enumerate(answer.iter_lines()):
            if number == 20:
                break
    until(
        lambda: application.total("xpeft_requests_total", route="/v1/generate", outcome="cancelled") == gone + 1,
        "a request that was cancelled",
    )
    until(lambda: application.total("xpeft_requests_running") == 0, "engines with nothing to do")
    assert application.total("xpeft_generation_tokens_total") - written < 4000


def test_tuning_is_refused_by_name(application: Any) -> None:
    examples = [{"text": "w1", "label": "x"}, {"text": "w2", "label": "y"}]
    answer = application.client.post("/v1/profiles/p0/tune", json={"examples": examples})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "tuning_off")


class Crowd:
    """Clients that ask until it is ``over``; ``ends`` counts how their requests ended."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.ends: Counter[str] = Counter()
        self.begun, self.killed, self.over = asyncio.Semaphore(0), asyncio.Event(), asyncio.Event()
        self._client = client

    async def classify(self, number: int) -> None:
        while not self.over.is_set():
            body = {"profile": f"p{number % PROFILES}", "input": ["w1 w2 w3"] * 4}
            answer = await self._client.post("/v1/classify", json=body)
            assert answer.status_code in (200, 503), answer.text
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0
            self.ends[f"classify {answer.status_code}"] += 1
            self.ends["answered after"] += self.killed.is_set()

    async def write(self, number: int) -> None:
        """A text, to its end or until it is over and some lines more show that it goes on."""
        body = {"profile": f"p{number % PROFILES}", "prompt": "w1 w2", "max_new_tokens": 4000, "stream": True}
        async with self._client.stream("POST", "/v1/generate", json=body) as answer:
            last, more = "", 0
            async for line in answer.aiter_lines():
                if not last:
                    self.begun.release()
                last = line or last
                more += self.over.is_set()
                if more == 60:
                    self.ends["text goes on"] += 1
                    return
        self.ends[f"text {json.loads(last.removeprefix('data: '))['error']['code']}"] += 1


async def test_a_replica_that_is_killed_costs_no_answer_but_texts_that_it_had_begun(
    application: Any, until: Any
) -> None:
    async def writing() -> int:
        """Replicas that told of a text in the last round of reports."""
        used = await asyncio.to_thread(application.by_replica, "xpeft_kv_tokens", state="used")
        return sum(tokens > 0 for tokens in used.values())

    before = application.engines()
    async with (
        httpx.AsyncClient(base_url=application.url, timeout=SECONDS) as client,
        asyncio.timeout(SECONDS),
        asyncio.TaskGroup() as tasks,
    ):
        crowd = Crowd(client)
        for number in range(CLASSIFYING):
            tasks.create_task(crowd.classify(number))
        texts = 0
        # Ray passes over a replica that does not tell its load within 0.1 s, on a busy machine for many texts.
        while texts < WRITING or await writing() < 2:
            tasks.create_task(crowd.write(texts))
            texts += 1
            await crowd.begun.acquire()
        os.kill(before[0], signal.SIGKILL)
        crowd.killed.set()
        while crowd.ends["answered after"] < 50 or not crowd.ends["text unavailable"]:
            await asyncio.sleep(0.02)
        crowd.over.set()
    ends = crowd.ends
    assert ends["classify 503"] == 0, ends
    assert ends["text goes on"] + ends["text unavailable"] == texts, ends
    assert 0 < ends["text unavailable"] < texts, ends
    until(lambda: len(set(application.engines()) - set(before)) == 1, "a process in place of the killed one")
    until(lambda: len(application.by_replica("xpeft_store_up")) == 3, "reports of two engines again")
    assert application.client.get("/ready").status_code == 200

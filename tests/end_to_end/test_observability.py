"""What a whole server tells of itself: its log, its access log, its traces, its profile."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TIMING = re.compile(r"([a-z]+);dur=([0-9]+\.[0-9]{3})(?:, |$)")


class Told(NamedTuple):
    """What two requests were answered, and what was there when their server had ended."""

    answers: list[httpx.Response]
    log: str
    spans: list[Any]
    resource: dict[str, str]
    profile: Path


@pytest.fixture(scope="module")
def told(
    server_starter: Callable[..., Any], make_collector: Callable[[], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Told]:
    folder, collector = tmp_path_factory.mktemp("told"), make_collector()
    server = server_starter(
        "memory://",
        *("--access-log", "--log-level", "debug", "--otlp-endpoint", collector.url),
        *("--profile-trace", str(folder / "profile.json.gz"), "--profile-batches", "1000"),
        log=folder / "server.log",
        environ={"XPEFT_API_KEY": "xp_" + "k" * 43},
    )
    server.wait_until_ready()
    assert server.put("desk", server.profile(1)).status_code == 201
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "r-1", "authorization": "Bearer hush"}
    body = {"profile": "desk", "input": ["w1 w2", "w3"]}
    answers = [server.client.post("/v1/classify", json=body, headers=headers) for _ in range(8)]
    answers.append(server.classify("nobody"))
    assert server.stop() == 0
    log = (folder / "server.log").read_text()
    yield Told(answers, log, collector.spans(), collector.resource(), folder / "profile.json.gz")
    collector.close()


def test_every_line_of_the_log_is_json_and_no_text_and_no_key_is_in_it(told: Told) -> None:
    lines = [json.loads(line) for line in told.log.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    assert {"info", "debug"} <= {line["level"] for line in lines}
    for secret in ("hush", "w1 w2", "xp_k"):
        assert secret not in told.log


def test_the_access_log_has_a_line_for_each_request_with_its_trace(told: Told) -> None:
    lines = [json.loads(line) for line in told.log.splitlines() if "xpeft.access" in line]
    classified = [line for line in lines if line["route"] == "/v1/classify"]
    assert len(classified) == len(told.answers)
    first, last = classified[0], classified[-1]
    assert (first["request_id"], first["trace_id"], first["tenant"]) == ("r-1", TRACE, "default")
    assert (first["profile"], first["prompt_tokens"], first["outcome"]) == ("desk", 7, "ok")
    assert first["profile_version"] == told.answers[0].headers["x-profile-version"]
    assert (last["profile"], last["status"], last["outcome"]) == ("nobody", 404, "client_error")
    assert "/ready" in {line["route"] for line in lines}


def test_every_answer_says_where_its_time_went(told: Told) -> None:
    for answer in told.answers[:-1]:
        stages = {name: float(value) for name, value in TIMING.findall(answer.headers["server-timing"])}
        assert {"tokenise", "store", "queue", "forward"} <= stages.keys()
        total = 1000 * float(answer.headers["x-total-time"])
        assert sum(stages.values()) - stages["store"] <= total
        assert stages["forward"] <= 1000 * float(answer.headers["x-inference-time"])
    assert {name for name, _ in TIMING.findall(told.answers[-1].headers["server-timing"])} == {"tokenise", "store"}


def test_the_collector_has_the_tree_of_every_request_when_the_server_has_ended(told: Told) -> None:
    roots = [span for span in told.spans if span.name == "POST /v1/classify"]
    assert len(roots) == len(told.answers)
    assert told.resource["service.name"] == "xpeft-server"
    first = roots[0]
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    children = [span for span in told.spans if span.parent_span_id == first.span_id]
    assert {child.name for child in children} == {"tokenise", "store", "queue", "fill", "forward"}
    for child in children:
        assert first.start_time_unix_nano <= child.start_time_unix_nano
        assert child.start_time_unix_nano <= child.end_time_unix_nano <= first.end_time_unix_nano
    assert "PUT /v1/profiles/{name}" in {span.name for span in told.spans}
    assert not [span for span in told.spans if "ready" in span.name]


def test_the_profile_of_the_batches_is_written_when_the_server_ends(told: Told) -> None:
    events = json.loads(gzip.decompress(told.profile.read_bytes()))["traceEvents"]
    found = {event["name"] for event in events if event.get("ph") == "X"}
    assert {"xpeft::batch", "xpeft::forward", "xpeft::heads", "xpeft::adapters"} <= found
    assert f"is in {told.profile}" in told.log

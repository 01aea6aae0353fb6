from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

LIE = struct.pack("<Q", 1 << 62) + b'{"mask_a":{}}'


@pytest.fixture(scope="module")
def hardy_server(server_starter: Any) -> Iterator[Any]:
    """One server for all of this: whatever one test sends, the next finds it well."""
    started = server_starter("memory://", "--max-profile-bytes", "65536", "--max-body-bytes", "200000")
    started.wait_until_ready()
    yield started
    assert started.stop() == 0


@pytest.fixture
def server(hardy_server: Any) -> Any:
    for name in hardy_server.versions():
        hardy_server.client.delete(f"/v1/profiles/{name}")
    return hardy_server


def in_the_envelope(answer: Any) -> bool:
    error = answer.json()["error"]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


BAD_NAMES = ["..", "../secret", "%2e%2e%2fsecret", "a%2fb", "a/b", "-a", ".a", "a b", "ä", "a" * 129, "base", "%00", ""]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_name_is_refused_and_nothing_is_stored(server: Any, name: str) -> None:
    answer = server.put(name, server.profile(1))
    assert 400 <= answer.status_code < 500
    assert in_the_envelope(answer)
    assert server.versions() == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"not a profile",
        LIE,
        struct.pack("<Q", 2) + b"{}",
        b"PK\x03\x04" + b"\x00" * 100,
        b"\x80\x04K\x01.",
    ],
)
def test_a_body_that_is_no_profile_is_refused_and_the_old_one_stays(server: Any, body: bytes) -> None:
    version = server.put("mine", server.profile(1)).json()["version"]
    answer = server.put("mine", body)
    assert answer.status_code == 422
    assert in_the_envelope(answer)
    assert server.versions() == {"mine": version}


def test_a_body_over_the_limit_is_refused(server: Any) -> None:
    answer = server.put("big", b"\x00" * 65_537)
    assert answer.status_code == 413
    assert in_the_envelope(answer)


def test_a_profile_of_another_bank_is_a_conflict(server: Any) -> None:
    body = server.profile(1)
    start = body.index(b"sha256:") + 7
    answer = server.put("foreign", body[:start] + b"0" * 64 + body[start + 64 :])
    assert answer.status_code == 409
    assert in_the_envelope(answer)
    assert server.versions() == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"{}",
        b"[" * 100_000,
        b'{"profile":"mine"}',
        b'{"input":"w1"}',
        b'{"profile":"mine","input":""}',
        b'{"profile":"mine","input":[]}',
        b'{"profile":"mine","input":[""]}',
        b'{"profile":"mine","input":5}',
        b'{"profile":"mine","input":[1]}',
        b'{"profile":"mine","input":{"text":"w1"}}',
        b'{"profile":"mine","input":[{"text":"w1","other":"w2"}]}',
        b'{"profile":"mine","input":"w1","surprise":1}',
        b'{"profile":"mine","model":"other","input":"w1"}',
        b'{"profile":"mine","input":"w1","truncate":"maybe"}',
        b'{"profile":"../x","input":"w1"}',
        b'{"profile":7,"input":"w1"}',
        b'{"profile":"mine","input":"\\ud800"}',
        b'{"profile":"mine","input":"' + b"w1 " * 33_333 + b'"}',
        b'{"profile":"mine","input":[' + b'"w1",' * 300 + b'"w1"]}',
        b'{"profile":"mine","input":NaN}',
        b"\xff\xfe",
    ],
)
def test_a_request_that_cannot_be_read_is_refused(server: Any, body: bytes) -> None:
    server.put("mine", server.profile(1))
    answer = server.client.post("/v1/classify", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert in_the_envelope(answer)
    assert server.classify("mine").status_code == 200


def test_100_000_characters_are_cut_when_the_request_says_so(server: Any) -> None:
    server.put("mine", server.profile(1))
    body = {"profile": "mine", "input": "w1 " * 33_333, "truncate": True}
    answer = server.client.post("/v1/classify", json=body)
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens"] == 64


def test_neighbours_get_the_same_bits_while_somebody_sends_rubbish(server: Any) -> None:
    for number in range(8):
        server.put(f"good{number}", server.profile(number, labels=2 + number))
    before = [server.classify(f"good{number}", f"w{number} w3").json()["data"] for number in range(8)]

    def rubbish(number: int) -> int:
        if number % 3 == 0:
            return int(server.put(f"good{number % 8}", LIE + bytes(number % 256)).status_code)
        if number % 3 == 1:
            return int(server.classify(f"good{number % 8}", ["w1", ""]).status_code)
        return int(server.classify("nobody").status_code)

    def good(number: int) -> Any:
        return server.classify(f"good{number % 8}", f"w{number % 8} w3").json()["data"]

    with ThreadPoolExecutor(16) as pool:
        bad, answers = pool.map(rubbish, range(300)), pool.map(good, range(300))
        assert set(bad) == {422, 404}
        assert all(answer == before[number % 8] for number, answer in enumerate(answers))

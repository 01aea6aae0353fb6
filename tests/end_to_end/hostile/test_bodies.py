"""JSON bodies that are nearly right, or not at all: each is answered or refused in the envelope, and never 5xx."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

EXAMPLES = 2_000 if os.environ.get("NIGHTLY") == "1" else 150
SECONDS = 5.0
"""For one request, on a machine that has other things to do; the model is tiny."""
BUSY_SECONDS = 3.0
"""Of processor time."""


class Raw(NamedTuple):
    """JSON that no encoder would write."""

    text: str


def written(value: object) -> str:
    """JSON text of documents with `Raw` in them; an object may also be a list of pairs, in which a key comes twice."""
    match value:
        case Raw(text):
            return text
        case dict():
            return written(Pairs(tuple(value.items())))
        case Pairs(pairs):
            return "{" + ",".join(f"{json.dumps(key)}:{written(item)}" for key, item in pairs) + "}"
        case list():
            return "[" + ",".join(map(written, value)) + "]"
        case _:
            return json.dumps(value)


class Pairs(NamedTuple):
    pairs: tuple[tuple[str, object], ...]


SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 3, "stop": ["w9 w9"], "min_p": 0.1}
VALID: dict[str, dict[str, Any]] = {
    "/v1/classify": {"profile": "mine", "input": [{"text": "w1 w2", "text_pair": "w3"}, {"text": "w4"}]},
    "/v1/generate": {"profile": "mine", "prompt": "w1 w2", "max_new_tokens": 4, "logprobs": 2, **SAMPLING},
    "/v1/completions": {"model": "mine", "prompt": ["w1 w2", "w3"], "max_tokens": 4, "logprobs": 2, **SAMPLING},
    "/v1/chat/completions": {
        "model": "mine",
        "messages": [
            {"role": "system", "content": "w1"},
            {"role": "user", "content": [{"type": "text", "text": "w2"}]},
        ],
        "max_completion_tokens": 4,
        "logprobs": True,
        "top_logprobs": 2,
        "metadata": {"a": "b"},
        **SAMPLING,
    },
    # One example is too few: what is left as it is is refused, too, and no body here begins a job.
    "/v1/profiles/tuned/tune": {
        "examples": [{"text": "w1", "text_pair": "w2", "label": "a", "split": "train"}],
        "labels": ["a", "b"],
        "settings": {"epochs": 1, "k": 2, "lr_masks": 0.1, "description": "d"},
    },
}
ROUTES = [
    ("encoder", "/v1/classify"),
    ("encoder", "/v1/profiles/tuned/tune"),
    *(("decoder", path) for path in VALID if not path.endswith("/tune")),
]

NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-0", "-0.0", "5e-324", "1e308", "01", "+1", ".5", "0x10", "1e-400")
TEXTS = ("", " ", "\0", "\ud800", "\udfff\ud800", "é" * 3000, "w1 " * 30_000, "w" * 300_000, "../x", "base", "\u202e")
HUGE = tuple(Raw(str(number)) for number in (2**31, 2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**400))
DEEP = tuple(Raw("[" * depth + "]" * depth) for depth in (30, 200, 1500, 100_000))
LONG = tuple(
    Raw(json.dumps(value))
    for value in (["w1"] * 3000, [1] * 50_000, [[]] * 3000, [{}] * 3000, {f"k{n}": n for n in range(30_000)})
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
hostile_values = (
    st.sampled_from(TEXTS)
    | st.sampled_from([Raw(number) for number in NUMBERS])
    | st.sampled_from(HUGE + DEEP)
    | st.sampled_from(LONG)
    | json_values
)
keys = st.sampled_from(["profile", "model", "stream", "n", "user", "__proto__", "\ud800", "", "stop"]) | st.text(
    max_size=300
)


def places(value: object, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a document, as paths."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, item in inner for path in ((*before, key), *places(item, (*before, key)))]


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], Any]) -> Any:
    """A copy in which ``change`` was made to what holds the last key of the path."""
    if len(path) == 1:
        return change(value, path[0])
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], change)
    return copy


def with_value(holder: Any, key: Any, value: object) -> Any:
    copy = dict(holder) if isinstance(holder, dict) else list(holder)
    copy[key] = value
    return copy


def without(holder: Any, key: Any) -> Any:
    pairs = holder.items() if isinstance(holder, dict) else enumerate(holder)
    kept = [(each, item) for each, item in pairs if each != key]
    return dict(kept) if isinstance(holder, dict) else [item for _, item in kept]


@st.composite
def near_bodies(draw: st.DrawFn, valid: dict[str, Any]) -> bytes:
    """A valid body after a few changes, as bytes."""
    body: Any = valid
    for _ in range(draw(st.integers(0, 2))):
        path = draw(st.sampled_from(places(body) or [("profile",)]))
        if draw(st.booleans()):
            body = changed(body, path, partial(with_value, value=draw(hostile_values)))
        else:
            body = changed(body, path, without)
    pairs = [*body.items(), *draw(st.lists(st.tuples(keys, hostile_values), max_size=1))]
    if draw(st.booleans()):
        pairs += draw(st.lists(st.sampled_from(pairs), max_size=2)) if pairs else []
    text = written(Pairs(tuple(pairs))).encode()
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(text)))
        text = text[:place] + draw(st.binary(max_size=4)) + text[place + draw(st.integers(0, 4)) :]
    return text


@pytest.mark.parametrize(("kind", "path"), ROUTES)
def test_a_body_is_answered_or_refused(
    kind: str, path: str, refused: Callable[[httpx.Response], None], request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(kind)
    valid = VALID[path]
    seen = set()

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(body=near_bodies(valid))
    @example(body=written(valid).encode())
    def ask(body: bytes) -> None:
        began = time.monotonic()
        answer = server.client.post(path, content=body, headers={"content-type": "application/json"})
        assert time.monotonic() - began < SECONDS
        seen.add(answer.status_code)
        if answer.status_code == 200:
            assert '"server_error"' not in answer.text
        else:
            refused(answer)

    ask()
    assert seen & {400, 422}
    assert path.endswith("/tune") or 200 in seen


@pytest.mark.parametrize("field", ["stop", "metadata", "prompt", "messages", "parts", "user"])
def test_no_body_keeps_the_server_busy_for_long(
    decoder: Any, refused: Callable[[httpx.Response], None], field: str
) -> None:
    """All requests share the thread that reads bodies: what the largest one may cost it is bounded."""
    size = int(decoder.client.get("/info").json()["limits"]["max_body_bytes"]) - 1000
    empty, needed = '{"role":"user","content":""}', '{"model":"mine","messages":[{"role":"user","content":"w1"}],'
    parts = '{"role":"user","content":[' + ",".join(['{"type":"text","text":""}'] * 200) + "]}"

    def many(item: str) -> str:
        return "[" + ",".join([item] * (size // (len(item) + 1))) + "]"

    bodies = {
        "stop": needed + '"stop":' + json.dumps([letter * (size // 8 - 20) for letter in "abcdefgh"]) + "}",
        "metadata": needed + '"metadata":{' + ",".join(f'"{number}":1' for number in range(size // 11)) + "}}",
        "prompt": '{"model":"mine","prompt":' + many("7") + "}",
        "messages": '{"model":"mine","messages":' + many(empty) + "}",
        "parts": '{"model":"mine","messages":' + many(parts) + "}",
        "user": needed + '"user":' + many("[]") + "}",
    }
    path = "/v1/completions" if field == "prompt" else "/v1/chat/completions"
    before = processor_seconds(decoder)
    answer = decoder.client.post(path, content=bodies[field], headers={"content-type": "application/json"})
    refused(answer)
    assert answer.status_code == 422
    assert processor_seconds(decoder) - before < BUSY_SECONDS


def processor_seconds(server: Any) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

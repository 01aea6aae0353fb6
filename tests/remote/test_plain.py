"""Requests and outcomes are the same after they were plain tuples."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpeft_profiles import ProfileKey
from xpeft_server.engine.errors import EngineError, InputTooLong, LimitReached, Unavailable
from xpeft_server.engine.requests import ClassifiedText, ClassifyAnswer, ClassifyRequest, Journey, TextInput
from xpeft_server.remote.answering import Outcome
from xpeft_server.remote.error_value import ErrorValue
from xpeft_server.remote.plain import Plain, outcome_of, plain_outcome, plain_request, request_of
from xpeft_server.remote.trail import Trail

VERSION = "sha256:" + "cd" * 32

# Surrogates too: JSON can have half of a pair.
texts = st.text(st.characters())
numbers = st.floats(allow_nan=False)
facts = st.dictionaries(texts, st.integers() | texts, max_size=2)
trails = st.builds(
    Trail,
    age=numbers,
    stages=st.lists(st.tuples(st.sampled_from(["queue", "forward"]), numbers, numbers, facts), max_size=3).map(tuple),
    profile_version=st.none() | texts,
    prompt_tokens=st.integers(),
    completion_tokens=st.integers(),
)
requests = st.builds(
    ClassifyRequest,
    profile=st.builds(ProfileKey, texts, texts),
    inputs=st.lists(st.builds(TextInput, texts, st.none() | texts), max_size=4).map(tuple),
    truncate=st.booleans(),
    journey=st.builds(Journey, texts),
)
classified_texts = st.builds(
    ClassifiedText,
    label=texts,
    score=numbers,
    probs=st.lists(numbers, max_size=4).map(tuple),
    num_classes=st.integers(1, 4),
)
answers = st.builds(
    ClassifyAnswer,
    profile_version=texts,
    labels=st.lists(texts, max_size=4).map(tuple),
    data=st.lists(classified_texts, max_size=4).map(tuple),
    prompt_tokens=st.integers(),
    queue_time=numbers,
    inference_time=numbers,
    verified=st.booleans(),
)


def sent(plain: Plain) -> Plain:
    """Over the connection."""
    there: Plain = pickle.loads(pickle.dumps(plain))  # noqa: S301
    return there


def only_plain(value: Any) -> bool:
    if type(value) in (tuple, dict):
        return all(map(only_plain, value.items() if isinstance(value, dict) else value))
    return type(value) in (str, int, float, bool, type(None))


@given(requests)
def test_a_request_comes_back_equal(request: ClassifyRequest) -> None:
    plain = plain_request(request)
    back = request_of(sent(plain))
    # The repr has the types' names: a named tuple equals any tuple.
    assert (back, repr(back), back.journey.id) == (request, repr(request), request.journey.id)
    assert only_plain(plain)


@given(answers, trails)
def test_an_answer_comes_back_equal(answer: ClassifyAnswer, trail: Trail) -> None:
    outcome = Outcome(answer, trail)
    plain = plain_outcome(outcome)
    back = outcome_of(sent(plain))
    assert (back, repr(back)) == (outcome, repr(outcome))
    assert only_plain(plain)


@pytest.mark.parametrize(
    "inputs",
    [
        (TextInput("My bag is lost"),),
        (TextInput("Money back", "please"),),
        (TextInput("Money back", ""), TextInput(""), TextInput("\ud800")),
    ],
    ids=["one text", "a pair", "empty and half a character"],
)
def test_these_requests_come_back_equal(inputs: tuple[TextInput, ...]) -> None:
    request = ClassifyRequest(ProfileKey("acme", "desk"), inputs, truncate=True, journey=Journey("id"))
    back = request_of(sent(plain_request(request)))
    assert (back, repr(back), back.journey.id) == (request, repr(request), "id")


@pytest.mark.parametrize(
    ("data", "verified"),
    [
        ((ClassifiedText("refund", 0.75, (0.75, 0.25), 2),), True),
        ((ClassifiedText("stars", 4.5, (), 1), ClassifiedText("stars", -1.0, (), 1)), True),
        ((ClassifiedText("refund", 0.75, (0.75, 0.25), 2),), False),
    ],
    ids=["classes", "regression", "unverified"],
)
def test_these_answers_come_back_equal(data: tuple[ClassifiedText, ...], verified: bool) -> None:
    trail = Trail(0.5, (("queue", 0.1, 0.2, {"texts": 3}), ("forward", 0.2, 0.4, {})), VERSION, 7, 0)
    outcome = Outcome(ClassifyAnswer(VERSION, ("refund", "baggage"), data, 7, 0.001, 0.002, verified), trail)
    back = outcome_of(sent(plain_outcome(outcome)))
    assert (back, repr(back)) == (outcome, repr(outcome))


@pytest.mark.parametrize(
    "error",
    [
        InputTooLong("input has 600 tokens", param="input"),
        LimitReached("request_rate", "50 requests a second", retry_after=3.0),
        Unavailable("the store is down", retry_after=2.0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_comes_back_equal_with_what_was_noted_until_then(error: EngineError) -> None:
    outcome = Outcome(ErrorValue.of(error), Trail(0.5, (("tokenise", 0.1, 0.2, {}),), None, 7, 0))
    back = outcome_of(sent(plain_outcome(outcome)))
    assert (back, repr(back)) == (outcome, repr(outcome))


def test_what_was_noted_of_a_request_stays_with_the_caller() -> None:
    journey = Journey("id")
    journey.note("queue", 1.0, 2.0)
    journey.prompt_tokens, journey.profile_version = 7, VERSION
    request = ClassifyRequest(ProfileKey("acme", "desk"), (TextInput("a"),), journey=journey)
    there = request_of(sent(plain_request(request))).journey
    assert (there.id, there.stages, there.prompt_tokens, there.profile_version) == ("id", [], 0, None)
    assert len(journey.stages) == 1

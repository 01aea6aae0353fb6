"""Errors that come back from another process as themselves."""

from __future__ import annotations

import pickle

import pytest

from xpeft_ray.refused import Refused
from xpeft_server.api.errors import translate
from xpeft_server.engine.errors import (
    EngineError,
    InputTooLong,
    InternalError,
    LimitReached,
    Overloaded,
    ProfileNotFound,
    Unavailable,
)

ERRORS = [
    InputTooLong("input has 600 tokens", param="input"),
    ProfileNotFound("profile 'desk' does not exist", param="profile"),
    Overloaded("the queue is full", retry_after=7.0, reason="queue"),
    LimitReached("request_rate", "50 requests a second", retry_after=3.0),
    Unavailable("the store is down", retry_after=2.0),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_the_way(error: EngineError) -> None:
    back = pickle.loads(pickle.dumps(Refused.of(error))).error()  # noqa: S301
    assert type(back) is type(error)
    assert (str(back), vars(back)) == (str(error), vars(error))
    here, there = translate(error), translate(back)
    assert here is not None
    assert there is not None
    assert (there.status, there.headers, there.envelope()) == (here.status, here.headers, here.envelope())


def test_an_error_that_is_not_known_here_is_our_own_fault() -> None:
    back = Refused("NewerThanThis", {"message": "something new", "param": None}).error()
    assert type(back) is InternalError
    assert str(back) == "something new"

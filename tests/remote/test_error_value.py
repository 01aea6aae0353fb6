"""Errors that come back from another process as themselves."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from xpeft_profiles import (
    BankMismatch,
    CursorInvalid,
    PreconditionFailed,
    ProfileInvalid,
    RecordDamaged,
    StoreUnavailable,
    TooManyJobs,
    TooManyProfiles,
)
from xpeft_server.api.errors import translate
from xpeft_server.engine.errors import (
    InputTooLong,
    InternalError,
    LimitReached,
    Overloaded,
    ProfileNotFound,
    Unavailable,
)
from xpeft_server.jobs.errors import (
    InvalidTuning,
    JobFailure,
    JobFinished,
    JobNotFound,
    TooManyRows,
    TuningFailed,
    TuningOff,
    WorkerDied,
)
from xpeft_server.remote.error_value import DOMAIN_ERRORS, DomainError, ErrorValue, subclasses

ERRORS = [
    InputTooLong("input has 600 tokens", param="input"),
    ProfileNotFound("profile 'desk' does not exist", param="profile"),
    Overloaded("the queue is full", retry_after=7.0, reason="queue"),
    LimitReached("request_rate", "50 requests a second", retry_after=3.0),
    Unavailable("the store is down", retry_after=2.0),
    TuningOff("this server tunes no profiles"),
    InvalidTuning("there are no examples", param="examples"),
    TooManyRows("there are 9 rows", param="examples"),
    JobNotFound("there is no job 'job_1'", param="id"),
    JobFinished("job job_1 is over: succeeded"),
    ProfileInvalid("is no mask", "mask_a"),
    BankMismatch("the profile was made for another bank"),
    RecordDamaged("the checksum is another one"),
    PreconditionFailed("sha256:1"),
    PreconditionFailed(None),
    CursorInvalid("the cursor is not one of this server's"),
    TooManyJobs(4),
    TooManyProfiles(4),
    StoreUnavailable("the store is down"),
]


def sent(error: DomainError) -> DomainError:
    """Over the connection."""
    there: ErrorValue = pickle.loads(pickle.dumps(ErrorValue.of(error)))  # noqa: S301
    return there.error()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_after_the_way(error: DomainError) -> None:
    back = sent(error)
    assert type(back) is type(error)
    assert (str(back), vars(back)) == (str(error), vars(error))
    here, there = translate(error), translate(back)
    assert here is not None
    assert there is not None
    assert (there.status, there.headers, there.envelope()) == (here.status, here.headers, here.envelope())


@pytest.mark.parametrize(
    "error",
    [
        TuningFailed("no rows", code="dataset_invalid", type="invalid_request_error", param="examples"),
        WorkerDied("the worker died"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_job_failed_of_is_the_same_after_the_way(error: JobFailure) -> None:
    back = sent(error)
    assert isinstance(back, type(error))
    assert (str(back), vars(back)) == (str(error), vars(error))
    assert (back.code, back.type) == (error.code, error.type)


def test_no_two_errors_have_the_same_name() -> None:
    names = Counter(kind.__name__ for root in DOMAIN_ERRORS for kind in subclasses(root))
    assert [name for name, times in names.items() if times > 1] == []
    assert {"EngineError", "LimitReached", "WorkerDied", "StoreUnavailable"} <= names.keys()


@pytest.mark.parametrize(
    "kind", [kind for root in DOMAIN_ERRORS for kind in subclasses(root)], ids=lambda kind: kind.__name__
)
def test_every_error_is_known_by_its_name(kind: type[DomainError]) -> None:
    back = ErrorValue(kind.__name__, {"message": "why"}).error()
    assert type(back) is kind
    assert (str(back), back.args) == ("why", ("why",))


def test_an_error_that_is_not_known_here_is_our_own_fault() -> None:
    back = ErrorValue("NewerThanThis", {"message": "something new", "param": None}).error()
    assert type(back) is InternalError
    assert str(back) == "something new"

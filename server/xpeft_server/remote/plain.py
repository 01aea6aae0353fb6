"""Requests to classify, and their outcomes, as plain tuples, which are pickled in a sixth of the time."""

from __future__ import annotations

from typing import Any

from xpeft_profiles import ProfileKey
from xpeft_server.engine.requests import ClassifiedText, ClassifyAnswer, ClassifyRequest, Journey, TextInput

from .answering import Outcome
from .error_value import ErrorValue
from .trail import Trail

Plain = tuple[Any, ...]


def plain_request(request: ClassifyRequest) -> Plain:
    """Without what has been noted of it so far, which stays with the caller."""
    inputs = tuple(map(tuple, request.inputs))
    return request.profile.tenant, request.profile.name, inputs, request.truncate, request.journey.id


def request_of(plain: Plain) -> ClassifyRequest:
    tenant, name, inputs, truncate, journey = plain
    texts = tuple(TextInput(*each) for each in inputs)
    return ClassifyRequest(ProfileKey(tenant, name), texts, truncate, Journey(journey))


def plain_outcome(outcome: Outcome) -> Plain:
    answer = outcome.result
    if isinstance(answer, ErrorValue):
        return answer, tuple(outcome.trail)
    plain = (
        answer.profile_version,
        answer.labels,
        tuple(map(tuple, answer.data)),
        answer.prompt_tokens,
        answer.queue_time,
        answer.inference_time,
        answer.verified,
    )
    return plain, tuple(outcome.trail)


def outcome_of(plain: Plain) -> Outcome:
    result, trail = plain
    if isinstance(result, ErrorValue):
        return Outcome(result, Trail(*trail))
    version, labels, data, *rest = result
    return Outcome(ClassifyAnswer(version, labels, tuple(ClassifiedText(*each) for each in data), *rest), Trail(*trail))

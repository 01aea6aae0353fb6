"""What travels to and from POST /v1/generate."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from xpeft_server.engine.requests import FinishReason

from ..name_schema import PROFILE_OR_MODEL, Name
from ..wire import EXAMPLE_VERSION, GeneratedUsageBody
from .sampling_wire import Logprobs, NewTokens, PromptBody, SamplingFields


class GenerateBody(SamplingFields):
    """``model`` is another word for ``profile``: one of them is needed, and not two that differ.

    ``base`` asks for the bare model.

    ``logprobs`` asks for each token's log-probability and those of so many of the likeliest in its place.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"profile": "support", "prompt": "Dear customer,", "max_new_tokens": 32},
                {"profile": "support", "prompt": "Dear", "temperature": 0.8, "top_p": 0.9, "seed": 1, "stop": "\n\n"},
                {"profile": "base", "prompt": [101, 2026, 4524], "stream": True},
            ],
            **PROFILE_OR_MODEL,
        }
    )

    profile: Name | None = None
    model: Name | None = None
    prompt: PromptBody
    max_new_tokens: NewTokens = 64
    logprobs: Logprobs | None = None


class LikelyTokenBody(BaseModel):
    """``bytes`` are the token's own, where ``token`` may be half a character; ``logprob`` is natural."""

    id: int
    token: str
    logprob: float
    bytes: list[int]


class ChosenTokenBody(LikelyTokenBody):
    top_logprobs: list[LikelyTokenBody]


class GenerateReplyBody(BaseModel):
    """``profile_version`` is null for the bare model; ``logprobs`` is there only if it was asked for.

    With ``stream: true`` each event has ``id`` and the next part of the ``text`` (and its ``logprobs``), the last one
    an empty ``text``, ``finish_reason`` and ``usage``; then comes ``[DONE]``. A failure on the way is an event with an
    ``error`` instead, and the end.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "generate-0f3a6c1be2d94c57a1b2c3d4",
                    "profile": "support",
                    "profile_version": EXAMPLE_VERSION,
                    "text": " we are sorry for the delay.",
                    "finish_reason": "stop",
                    "usage": {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11},
                }
            ]
        }
    )

    id: str
    profile: str
    profile_version: str | None
    text: str
    finish_reason: FinishReason
    logprobs: list[ChosenTokenBody] | None = None
    usage: GeneratedUsageBody

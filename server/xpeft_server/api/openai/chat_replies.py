"""What POST /v1/chat/completions answers, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from xpeft_server.engine.requests import FinishReason

from .usage import OpenAiUsageBody


class ChatLikelyTokenBody(BaseModel):
    """``bytes`` are the token's own, where ``token`` may be half a character; ``logprob`` is natural."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenBody(ChatLikelyTokenBody):
    top_logprobs: list[ChatLikelyTokenBody]


class ChatLogprobsBody(BaseModel):
    content: list[ChatTokenBody]
    refusal: None


class ChatAnswerBody(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoiceBody(BaseModel):
    index: int
    message: ChatAnswerBody
    logprobs: ChatLogprobsBody | None
    finish_reason: FinishReason


class ChatReplyBody(BaseModel):
    """With ``stream: true`` chunks are ``chat.completion.chunk`` and their choices have a ``delta``, no ``message``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "chatcmpl-0f3a6c1be2d94c57a1b2c3d4",
                    "object": "chat.completion",
                    "created": 1767225600,
                    "model": "support",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "It is on its way.", "refusal": None},
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": {
                        "prompt_tokens": 21,
                        "completion_tokens": 6,
                        "total_tokens": 27,
                        "prompt_tokens_details": {"cached_tokens": 0},
                    },
                }
            ]
        }
    )

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceBody]
    usage: OpenAiUsageBody

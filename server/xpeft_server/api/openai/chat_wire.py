"""What travels to and from POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

from xpeft_server.engine.requests import ChatMessage

from ..bodies.counts import check_count, length_of
from ..bodies.refused_fields import Unsupported, unsupported
from ..bodies.union_tags import PARTS, TEXT, text_or
from ..generation.sampling_wire import Logprobs, NewTokens
from .wire import NullableBody, OpenAiFields

# Not what the context has room for: that may be more than can be looked at without holding up everybody else, and a
# part may have no token at all.
MOST_MESSAGES: Final = 2048
# Of all messages together.
MOST_PARTS: Final = 4096
_ROLES_OF_TOOLS: Final = ("tool", "function")
# What OpenAI calls the developer's message the templates of open models call the system's.
_ROLES: Final = {"developer": "system"}


def _only_text(part: object) -> object:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise unsupported(f"a part of type {kind[:80]!r}", 'send parts of type "text"')
    return part


def _no_tools(role: object) -> object:
    if role in _ROLES_OF_TOOLS:
        raise unsupported(f"the role {role!r}", "send messages of system, developer, user and assistant")
    return role


class TextPartBody(NullableBody):
    """``prompt_cache_breakpoint`` is ignored."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, object] | None = None


_Part = Annotated[TextPartBody, BeforeValidator(_only_text)]
ContentBody = Annotated[
    Annotated[str, Tag(TEXT)]
    | Annotated[list[_Part], Field(min_length=1, max_length=MOST_PARTS, fail_fast=True), Tag(PARTS)],
    Discriminator(
        text_or(PARTS), custom_error_type="content_type", custom_error_message="must be a text or a list of parts"
    ),
]


class MessageBody(NullableBody):
    """The texts of parts are one text, with nothing between them; ``developer`` is another word for ``system``."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_no_tools)]
    name: Annotated[object, Unsupported()] = None
    refusal: Annotated[object, Unsupported()] = None
    annotations: Annotated[object, Unsupported([])] = None
    audio: Annotated[object, Unsupported()] = None
    tool_calls: Annotated[object, Unsupported([])] = None
    tool_call_id: Annotated[object, Unsupported()] = None
    function_call: Annotated[object, Unsupported()] = None
    # Where LiteLLM keeps the ``refusal`` of our answers when it sends them back.
    provider_specific_fields: Annotated[object, Unsupported({}, {"refusal": None})] = None
    content: ContentBody

    def message(self) -> ChatMessage:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(_ROLES.get(self.role, self.role), content)


class ChatBody(OpenAiFields):
    """``max_tokens`` is the older word for ``max_completion_tokens``; without either, the context is the limit.

    The fields of prompt caches and ``safety_identifier`` are ignored.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "support",
                    "messages": [
                        {"role": "system", "content": "You are brief."},
                        {"role": "user", "content": "Where is my bag?"},
                    ],
                    "max_completion_tokens": 64,
                },
                {
                    "model": "base",
                    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}],
                    "temperature": 0,
                    "logprobs": True,
                    "top_logprobs": 3,
                    "stream": True,
                },
            ]
        }
    )

    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    logprobs: bool = False
    top_logprobs: Logprobs | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, object] | None = None
    parallel_tool_calls: bool = True
    tools: Annotated[object, Unsupported([])] = None
    tool_choice: Annotated[object, Unsupported("none", "auto")] = None
    functions: Annotated[object, Unsupported([])] = None
    function_call: Annotated[object, Unsupported("none", "auto")] = None
    response_format: Annotated[object, Unsupported({"type": "text"})] = None
    modalities: Annotated[object, Unsupported(["text"])] = None
    audio: Annotated[object, Unsupported()] = None
    moderation: Annotated[object, Unsupported()] = None
    prediction: Annotated[object, Unsupported()] = None
    reasoning_effort: Annotated[object, Unsupported("none")] = None
    verbosity: Annotated[object, Unsupported("medium")] = None
    web_search_options: Annotated[object, Unsupported()] = None

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, value: int | None, info: ValidationInfo) -> int | None:
        older = info.data.get("max_tokens")
        if value is not None and older is not None and value != older:
            raise ValueError(f"must be what max_tokens is, {older}, or one of them be left out")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _only_with_logprobs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value and info.data.get("logprobs") is False:
            raise ValueError("needs logprobs: true")
        return value

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def told_logprobs(self) -> int | None:
        """How many likely tokens are told with each; None if nothing is."""
        return (self.top_logprobs or 0) if self.logprobs else None


def check_counts(document: Mapping[str, object]) -> None:
    """Raises: ApiError 422 if there are more messages than `MOST_MESSAGES`, or more parts in them than `MOST_PARTS`."""
    messages = document.get("messages")
    if not isinstance(messages, list):
        return
    check_count("messages", len(messages), MOST_MESSAGES, "messages are {count}, more than the {most} of one request")
    parts = sum(length_of(each.get("content")) for each in messages if isinstance(each, dict))
    check_count("messages", parts, MOST_PARTS, "messages have {count} parts, more than the {most} of one request")

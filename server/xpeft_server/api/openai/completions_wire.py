"""What travels to and from POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

from xpeft_server.engine.requests import FinishReason

from ..bodies.counts import length_of
from ..bodies.refused_fields import Unsupported
from ..bodies.union_tags import LISTS, TEXT, TEXTS, TOKENS
from ..bodies.whole_numbers import WHOLE
from ..generation.sampling_wire import INT32, TokenIds
from ..wire import MOST_ITEMS, Text
from .usage import OpenAiUsageBody
from .wire import OpenAiFields

_MOST_LOGPROBS: Final = 5


def _kind_of_prompts(value: object) -> str | None:
    if isinstance(value, str):
        return TEXT
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    if isinstance(first, list):
        return LISTS
    return TOKENS if isinstance(first, int) else TEXTS


def count_of_prompts(value: object) -> int:
    """Of the field's value as it came; a list of token ids is one prompt."""
    return 1 if _kind_of_prompts(value) == TOKENS else length_of(value)


PromptsBody = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True), Tag(TEXTS)]
    | Annotated[TokenIds, Tag(TOKENS)]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True), Tag(LISTS)],
    Discriminator(
        _kind_of_prompts,
        custom_error_type="prompt_type",
        custom_error_message="must be a text, a list of texts, a list of token ids or a list of those",
    ),
]


class CompletionBody(OpenAiFields):
    """Several prompts are worked on side by side and become choices in their order.

    With ``echo`` a choice's text begins with the prompt's, and so do its logprobs, if they are asked for;
    ``max_tokens`` may be 0 then.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "support", "prompt": "Dear customer,", "max_tokens": 32, "temperature": 0},
                {"model": "support", "prompt": ["Dear", "Hello"], "seed": 1, "stop": ["\n\n"], "logprobs": 2},
                {"model": "base", "prompt": "Once", "stream": True, "stream_options": {"include_usage": True}},
            ]
        }
    )

    prompt: PromptsBody
    echo: bool = False
    max_tokens: Annotated[int, Field(ge=0, lt=INT32), WHOLE] = 16
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS), WHOLE] | None = None
    best_of: Annotated[object, Unsupported(1)] = None
    suffix: Annotated[object, Unsupported("")] = None

    @field_validator("max_tokens")
    @classmethod
    def _some_text(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and not info.data.get("echo"):
            raise ValueError("must be at least 1 without echo")
        return value

    def prompts(self) -> dict[str, str | tuple[int, ...]]:
        """Each as the engine takes it, by its place in the body."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt}
        if isinstance(self.prompt[0], int):
            return {"prompt": tuple(self.prompt)}
        several: Sequence[str | list[int]] = self.prompt
        return {
            f"prompt[{index}]": item if isinstance(item, str) else tuple(item) for index, item in enumerate(several)
        }


class LegacyLogprobsBody(BaseModel):
    """A list each with an entry a token; offsets count characters of the choice's text. The first token of a prompt has
    null for its logprobs."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoiceBody(BaseModel):
    """``finish_reason`` is null in a stream but at the choice's end."""

    text: str
    index: int
    logprobs: LegacyLogprobsBody | None
    finish_reason: FinishReason | None


class CompletionReplyBody(BaseModel):
    """The shape of a stream's chunks too, whose choices come interleaved."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "cmpl-0f3a6c1be2d94c57a1b2c3d4",
                    "object": "text_completion",
                    "created": 1767225600,
                    "model": "support",
                    "choices": [
                        {
                            "text": " we are sorry for the delay.",
                            "index": 0,
                            "logprobs": None,
                            "finish_reason": "stop",
                        }
                    ],
                    "usage": {
                        "prompt_tokens": 3,
                        "completion_tokens": 8,
                        "total_tokens": 11,
                        "prompt_tokens_details": {"cached_tokens": 0},
                    },
                }
            ]
        }
    )

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoiceBody]
    usage: OpenAiUsageBody | None = None

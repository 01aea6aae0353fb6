"""What every way to ask for text has in its body."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Discriminator, Field, Tag

from xpeft_server.engine.requests import SamplingRule

from ..bodies.union_tags import TEXT, TEXTS, TOKENS, text_or
from ..bodies.whole_numbers import WHOLE
from ..wire import Text, WireBody

MOST_STOPS: Final = 8
MOST_LOGPROBS: Final = 20
# What looks for them takes memory for each character.
MOST_STOP_CHARACTERS: Final = 256
# More tokens than any model's context.
MOST_TOKENS: Final = 1 << 20
# Counts of tokens and ids of tokens fit into 32 bits everywhere.
INT32: Final = 1 << 31
_INT64: Final = 1 << 63

Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
NewTokens = Annotated[int, Field(ge=1, lt=INT32), WHOLE]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS), WHOLE]
TokenId = Annotated[int, Field(ge=0, lt=INT32, description="without a fraction: 4.0 is refused")]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS, fail_fast=True)]
StopText = Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]


StopBody = Annotated[
    Annotated[StopText, Tag(TEXT)]
    | Annotated[list[StopText], Field(max_length=MOST_STOPS, fail_fast=True), Tag(TEXTS)],
    Discriminator(
        text_or(TEXTS), custom_error_type="stop_type", custom_error_message="must be a text or a list of texts"
    ),
]


PromptBody = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[TokenIds, Tag(TOKENS)],
    Discriminator(
        text_or(TOKENS), custom_error_type="prompt_type", custom_error_message="must be a text or a list of token ids"
    ),
]


class SamplingFields(WireBody):
    """How tokens are chosen and where the answer ends; the defaults choose the likeliest token.

    ``top_k`` of 0, or -1 as older clients of vLLM say, keeps all tokens. With ``ignore_eos`` a token that ends a text
    does not end the answer; it is counted, and adds no text.
    """

    temperature: Temperature = 0.0
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=INT32), WHOLE] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64), WHOLE] | None = None
    stop: StopBody | None = None
    ignore_eos: bool = False
    stream: bool = False

    def rule(self, logprobs: int | None) -> SamplingRule:
        """The engine's word for these fields, and how many tokens to tell with each chosen one."""
        return SamplingRule(
            repetition_penalty=self.repetition_penalty,
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            logprobs=logprobs,
        )

    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

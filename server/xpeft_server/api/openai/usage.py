"""What replies and the chunks of a stream tell of the tokens that they took."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

from xpeft_server.engine.requests import Finished, News, Piece, Started

from ..generation.text_requests import usage_of
from ..wire import GeneratedUsageBody


class PromptTokensBody(BaseModel):
    """``cached_tokens`` were not computed, but taken from an earlier prompt that began alike."""

    cached_tokens: int


class OpenAiUsageBody(GeneratedUsageBody):
    prompt_tokens_details: PromptTokensBody


def openai_usage(finished: Iterable[Finished]) -> dict[str, object]:
    """The tokens of all these answers."""
    counts = [(one.prompt_tokens, one.completion_tokens, one.cached_tokens) for one in finished]
    return _usage_of(*map(sum, zip(*counts, strict=True)))


class StreamUsage:
    """Takes in the news of every choice.

    Args:
        at_end: whether a last chunk without a choice tells the usage of all choices.
        always: whether every chunk of a choice tells that of the choice so far; else it is null there.
    """

    def __init__(self, *, at_end: bool, always: bool) -> None:
        self.at_end = at_end
        self._always = always
        self._counts: dict[int, tuple[int, int, int]] = {}

    def note(self, index: int, item: News) -> None:
        prompt, _, cached = self._counts.get(index, (0, 0, 0))
        match item:
            case Started():
                self._counts[index] = item.prompt_tokens, 0, item.cached_tokens
            case Piece():
                self._counts[index] = prompt, item.generated, cached
            case Finished():
                self._counts[index] = item.prompt_tokens, item.completion_tokens, item.cached_tokens

    def of_chunk(self, index: int) -> dict[str, object]:
        """The field of a chunk of this choice, if it has one."""
        if not self.at_end:
            return {}
        return {"usage": _usage_of(*self._counts[index]) if self._always else None}

    def of_all(self) -> dict[str, object]:
        """The field of the last chunk."""
        return {"usage": _usage_of(*map(sum, zip(*self._counts.values(), strict=True)))}


def _usage_of(prompt: int, completion: int, cached: int) -> dict[str, object]:
    return {**usage_of(prompt, completion), "prompt_tokens_details": {"cached_tokens": cached}}

"""What the chunks of a stream tell of the tokens that they took."""

from __future__ import annotations

from xpeft_server.engine.requests import Finished, News, Piece, Started

from ..generation.text_requests import usage_of


class StreamUsage:
    """Takes in the news of every choice.

    Args:
        at_end: whether a last chunk without a choice tells the usage of all choices.
        always: whether every chunk of a choice tells that of the choice so far; else it is null there.
    """

    def __init__(self, *, at_end: bool, always: bool) -> None:
        self.at_end = at_end
        self._always = always
        self._counts: dict[int, tuple[int, int]] = {}

    def note(self, index: int, item: News) -> None:
        prompt, _ = self._counts.get(index, (0, 0))
        match item:
            case Started():
                self._counts[index] = item.prompt_tokens, 0
            case Piece():
                self._counts[index] = prompt, item.generated
            case Finished():
                self._counts[index] = item.prompt_tokens, item.completion_tokens

    def of_chunk(self, index: int) -> dict[str, object]:
        """The field of a chunk of this choice, if it has one."""
        if not self.at_end:
            return {}
        return {"usage": usage_of(*self._counts[index]) if self._always else None}

    def of_all(self) -> dict[str, object]:
        """The field of the last chunk."""
        prompts, completions = zip(*self._counts.values(), strict=True)
        return {"usage": usage_of(sum(prompts), sum(completions))}

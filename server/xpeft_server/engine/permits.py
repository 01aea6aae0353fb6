"""How much may be accepted and not yet answered, counted in texts and in tokens."""

from __future__ import annotations

from .errors import Overloaded


class Permits:
    """Bounds what is in the house. Used from the event loop alone.

    Args:
        texts: most texts accepted and not yet answered.
        tokens: most tokens of those. A request is let in whole when nothing else is there, however long it is.
    """

    def __init__(self, *, texts: int, tokens: int) -> None:
        self._limits = {"texts": texts, "tokens": tokens}
        self.texts = 0
        self.tokens = 0

    def admit_texts(self, count: int) -> None:
        """Raises: Overloaded if the texts do not fit beside those that are in."""
        self._check("texts", self.texts, count)
        self.texts += count

    def admit_tokens(self, count: int) -> None:
        """Raises: Overloaded if the tokens do not fit beside those that are in."""
        self._check("tokens", self.tokens, count)
        self.tokens += count

    def release(self, *, texts: int, tokens: int) -> None:
        self.texts -= texts
        self.tokens -= tokens

    def _check(self, unit: str, present: int, count: int) -> None:
        limit = self._limits[unit]
        if present and present + count > limit:
            raise Overloaded(f"{present} {unit} are waiting and {count} more would pass the limit of {limit}")

"""A stream of generated text, read as it comes: when each part was there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import orjson

from .exchange import FIRST_TOKEN, PAUSE, PER_TOKEN

_DATA: Final = b"data: "
_DONE: Final = b"[DONE]"


@dataclass(slots=True)
class EventReader:
    """Fed with the bytes of one answer of /v1/generate with ``stream: true``.

    Attributes:
        moments: when each piece of text was there.
        is_whole: the stream came to its end without an error.
        prompt_tokens, new_tokens: as the server counts them.
    """

    moments: list[float] = field(default_factory=list)
    is_whole: bool = False
    prompt_tokens: int = 0
    new_tokens: int = 0
    _rest: bytes = b""

    def feed(self, data: bytes, now: float) -> None:
        """Raises: ValueError if the server sends something else."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        for event in events:
            if event.startswith(_DATA):
                self._take(event.removeprefix(_DATA), now)

    def _take(self, data: bytes, now: float) -> None:
        if data == _DONE:
            self.is_whole = True
            return
        document = orjson.loads(data)
        if document.get("text"):
            self.moments.append(now)
        if usage := document.get("usage"):
            self.prompt_tokens, self.new_tokens = usage["prompt_tokens"], usage["completion_tokens"]

    def stages(self, begin: float) -> dict[str, float]:
        """Seconds; see `Exchange`. A text that has no piece has no stages."""
        if not self.moments:
            return {}
        first, last = self.moments[0], self.moments[-1]
        stages = {FIRST_TOKEN: first - begin}
        if len(self.moments) > 1:
            pairs = zip(self.moments, self.moments[1:], strict=False)
            stages[PAUSE] = max(later - earlier for earlier, later in pairs)
            stages[PER_TOKEN] = (last - first) / max(1, self.new_tokens - 1)
        return stages

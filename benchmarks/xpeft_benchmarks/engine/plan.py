"""What ``xpeft bench engine`` measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..command_line import shown_word
from ..popularity import Popularity


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What to measure.

    Args:
        plm: path, hub id or ``minilm``; with a ``shape`` nothing of it is read.
        shape: a name of `shapes.SHAPES`, whose weights are random; None for the PLM.
        adapters, width: N and R of the bank.
        batch_tokens: most tokens of a batch, each a whole number of texts of ``text_tokens``.
        inputs: texts of a request.
        in_flight: batches' worth of requests.
        profiles: registered ones, all in one store; requests are for the first so many.
        seconds: length of a turn.
    """

    plm: str
    shape: str | None
    adapters: int
    width: int
    device: str
    dtype: str
    batch_tokens: tuple[int, ...]
    text_tokens: int
    inputs: int
    in_flight: int
    profiles: tuple[int, ...]
    popularity: Popularity
    rounds: int
    seconds: float
    seed: int = 0

    @property
    def model(self) -> str:
        """What results call it."""
        return self.shape or shown_word(self.plm)

    def texts_of(self, tokens: int) -> int:
        """That a batch of so many tokens has."""
        return tokens // self.text_tokens

    def settings(self) -> dict[str, object]:
        plain = asdict(self) | {"popularity": str(self.popularity)}
        return {name: value for name, value in plain.items() if name != ("plm" if self.shape else "shape")}

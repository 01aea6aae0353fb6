"""Cuts a step's new tokens, and the keys that they see, into pieces for a program each; on the host, without Triton."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..pieces import cut

SPAN: Final = 256
"""Tokens of a span: keys are added up span by span, counted from a sequence's first token, and spans are then joined.
It enters every sum, so it is the same for all sequences, and a multiple of every block of keys."""


class Steps(NamedTuple):
    """The work of a step's programs.

    Args:
        pieces: ``[K, 7]`` int32: first query row; query rows, 0 for a piece that stands for nothing; first cache row of
            the sequence; known tokens before the piece's first; first span; spans, 0 for all that there are; and for a
            piece that does not have all, the part of scratch memory that belongs to the sequence's first span.
        joins: ``[J, 3]`` int32, for each sequence whose spans are in several pieces: query row, the part of its first
            span, known tokens. Zeros stand for nothing.
        parts: of scratch memory.
    """

    pieces: NDArray[np.int32]
    joins: NDArray[np.int32]
    parts: int


@dataclass(frozen=True, slots=True, eq=False)
class PlacedSteps:
    """`Steps` whose tables are on the device, for example as a CUDA graph's static inputs."""

    pieces: Tensor
    joins: Tensor
    parts: int


def cut_steps(runs: NDArray[np.integer], rows: int, *, spare: int = 0) -> Steps:
    """Cut runs of new tokens into pieces of at most ``rows`` query rows, each over all spans of its sequence.

    For single new tokens the spans are cut, too, evenly, into as many pieces as ``spare`` allows.

    Args:
        runs: ``[Q, 4]`` (first query row, query rows, first cache row of the sequence, known tokens before the run);
            one without query rows has no piece.
        spare: most pieces that there may be beyond those without which it cannot be done.
    """
    spans = (runs[:, 3] + runs[:, 1] - 1) // SPAN + 1
    single = runs[:, 1] == 1
    most = _spans_a_piece(spans[single], spare)
    split = single & (spans > most)
    first, length, base, past = runs[~split].T
    owner, done = cut(length, rows)
    size = np.minimum(length[owner] - done, rows)
    none = np.zeros_like(done)
    pieces = [np.stack([first[owner] + done, size, base[owner], past[owner] + done, none, none, none], axis=1)]
    first, length, base, past = runs[split].T
    each = spans[split]
    part = np.cumsum(each) - each
    owner, begin = cut(each, most)
    size = np.minimum(each[owner] - begin, most)
    pieces.append(np.stack([first[owner], length[owner], base[owner], past[owner], begin, size, part[owner]], axis=1))
    joins = np.stack([first, part, past], axis=1)
    return Steps(np.concatenate(pieces).astype(np.int32), joins.astype(np.int32), int(each.sum()))


def _spans_a_piece(spans: NDArray[np.integer], spare: int) -> int:
    """The fewest spans of a piece for which there are at most ``spare`` pieces beyond one for each sequence."""

    def suffices(most: int) -> bool:
        return int((-(-spans // most) - 1).sum()) <= spare

    longest = int(spans.max(initial=1))
    return 1 + bisect_left(range(1, longest), True, key=suffices)


class StepRoom(NamedTuple):
    """Most pieces, joins and parts that a step of so many tokens can have."""

    pieces: int
    joins: int
    parts: int

    @classmethod
    def of(cls, tokens: int, *, longest: int, room: int, spare: int) -> StepRoom:
        """Args:
        longest: tokens of the longest sequence.
        room: tokens of all sequences together.
        spare: see `cut_steps`.
        """
        most = -(-longest // SPAN)
        if most == 1:
            return cls(tokens, 0, 0)
        # A sequence that is cut has more than one span, and the tokens of all but its last.
        joins = min(tokens, room // SPAN)
        parts = min(tokens * most, room // SPAN + joins)
        return cls(tokens + min(spare, parts - joins), joins, parts)

"""How large a program of attend_cache is; without importing Triton."""

from __future__ import annotations

from typing import Final, NamedTuple

PROGRAMS: Final = 1024
"""Programs that a few long sequences are cut into. About 150 multiprocessors have room for three each; twice as many
end at more even times."""


class Launch(NamedTuple):
    """Sizes of one program: rows of its tile, query heads among them, keys at a time, padded d, warps, stages of loads.

    A row of the tile is one query head of one new token. They depend on the heads, d and the dtype alone, so that
    tokens that are written and tokens of prompts, in pieces of any length, go through the same program.
    """

    rows: int
    heads: int
    keys: int
    width: int
    warps: int
    stages: int

    @classmethod
    def of(cls, group: int, d: int, itemsize: int) -> Launch:
        """Args: group: query heads that share a key."""
        width = max(16, 1 << (d - 1).bit_length())
        if itemsize >= 4:
            rows, keys, stages = 16, 32 if width <= 64 else 16, 2 if width <= 128 else 1
        else:
            # A program keeps two accumulators, which for wide heads leaves registers for fewer rows.
            rows, keys, stages = 32 if width <= 64 else 16, max(16, min(64, 4096 // width)), 3
        warps = 4 if width <= 128 else 8
        return cls(rows=rows, heads=min(group, rows), keys=keys, width=width, warps=warps, stages=stages)

    @property
    def queries(self) -> int:
        """New tokens in a tile."""
        return self.rows // self.heads


def step_rows(group: int, d: int, itemsize: int) -> int:
    """Most query rows of a piece, for `cut_steps`.

    Args: group: query heads that share a key; d: elements of a head; itemsize: bytes of an element.
    """
    return Launch.of(group, d, itemsize).queries


def spare_pieces(heads: int, group: int, d: int, itemsize: int) -> int:
    """Pieces that a step may have beyond one a sequence, so that few long ones keep a whole GPU busy; for `cut_steps`.

    Args:
        heads: of keys.
        group, d, itemsize: see `step_rows`.
    """
    return max(1, PROGRAMS // (heads * -(-group // Launch.of(group, d, itemsize).heads)))

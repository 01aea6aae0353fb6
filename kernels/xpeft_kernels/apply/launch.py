"""How large a program of apply_adapters is; known without Triton."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..form import AdapterForm

FEW_TOKENS: Final = 4096
"""With more tokens tiles may be larger; these have a compiled kernel of their own."""

WIDEST: Final = {2: 1024, 4: 512}
"""Largest R, by bytes of an element: a program for a larger one needs more shared memory than sm_80 has."""


class Launch(NamedTuple):
    """Sizes of one program: rows of a tile, columns of H and of R at a time, warps, stages of loads in flight."""

    rows: int
    columns: int
    width: int
    warps: int
    stages: int

    @classmethod
    def of(cls, tokens: int, form: AdapterForm, itemsize: int) -> Launch:
        """Few tokens are cut into small tiles, so that the whole GPU has work; many into larger ones, which read a
        profile's adapter less often. Both use the same instructions, so a row's bits are the same; from 64 rows on
        sm_90 would use others. Tiles of adapters wider than 128 stay small: their few columns of H are laid out over
        threads by the number of rows, so larger tiles would add up a LayerNorm's sums in another order.

        Raises: ValueError if the adapters are wider than `WIDEST`.
        """
        most = WIDEST[itemsize]
        if form.width > most:
            raise ValueError(
                f"adapters of R={form.width}: with {itemsize} bytes a number the kernel takes up to {most}"
            )
        width = max(16, 1 << (form.width - 1).bit_length())
        columns = max(16, min(256, 16384 // width) // itemsize)
        rows = 16 if tokens <= FEW_TOKENS or itemsize == 4 or width > 128 else 32
        return cls(rows=rows, columns=columns, width=width, warps=4, stages=3)


def piece_rows(tokens: int, form: AdapterForm, itemsize: int) -> int:
    """Most rows of a piece that the kernel takes, for T tokens of ``itemsize`` bytes an element: what `cut_runs` and
    `PlacedTiles` want. Raises: ValueError for adapters that it does not take."""
    return Launch.of(tokens, form, itemsize).rows

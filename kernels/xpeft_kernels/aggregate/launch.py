"""How many profiles a program of aggregate_adapters makes; known without Triton."""

from __future__ import annotations

from typing import Final

PROFILE_TILES: Final = (16, 32)
"""Each has a kernel compiled of its own, by the first fill of so many. 64 would make sm_90 multiply with other
instructions, which add in another order."""


def tile_profiles(profiles: int) -> int:
    few, many = PROFILE_TILES
    return few if profiles <= few else many

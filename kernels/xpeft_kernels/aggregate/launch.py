"""How many profiles a program of aggregate_adapters makes; known without Triton."""

from __future__ import annotations

from typing import Final

PROFILE_TILES: Final = (16, 32)
"""Each has a compiled kernel of its own, made by the first fill of so many. With 64, sm_90 would use instructions that
add in another order."""


def tile_profiles(profiles: int) -> int:
    few, many = PROFILE_TILES
    return few if profiles <= few else many

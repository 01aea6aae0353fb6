"""A file of very many random profiles, quickly."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Final

import numpy as np

from xpeft_profiles import Profile, ProfileKey, write_profile_file

BLOCKS: Final = 6  # of MiniLM
ADAPTERS: Final = 100
CHOSEN: Final = 50
_BANK: Final = "sha256:" + "be" * 32
_HEAD: Final = "topics"
_ROWS: Final = 1 << 16  # different rows that masks are made of; a profile has 12
_AT_ONCE: Final = 1024


def profile_key(index: int, *, tenants: int) -> ProfileKey:
    """Names follow the indices; each tenant has as many profiles as the next, one after the other."""
    return ProfileKey(f"bench-{index % tenants:06}", f"profile-{index:08}")


def write_profile_lines(path: Path, *, profiles: int, tenants: int, seed: int) -> None:
    """JSON lines as ``xpeft profiles export`` writes them: hard masks of L=6 N=100 k=50 and a shared head."""
    rng = np.random.default_rng(seed)
    chosen = np.arange(ADAPTERS) < CHOSEN
    rows = rng.permuted(np.tile(chosen, (_ROWS, 1)), axis=1).view(np.uint8)
    mask = np.tile(chosen, (BLOCKS, 1))
    example = write_profile_file(Profile(bank=_BANK, mask_a=mask, mask_b=mask, shared_head=_HEAD))
    header = example[: -2 * mask.size]  # the masks are what a canonical file ends with
    with path.open("wb") as file:
        for start in range(0, profiles, _AT_ONCE):
            count = min(_AT_ONCE, profiles - start)
            masks = rows[rng.integers(0, _ROWS, (count, 2 * BLOCKS))].reshape(count, -1)
            for index, values in enumerate(masks, start):
                tenant, name = profile_key(index, tenants=tenants)
                text = b64encode(header + values.tobytes()).decode()
                file.write(f'{{"tenant":"{tenant}","name":"{name}","file":"{text}"}}\n'.encode())

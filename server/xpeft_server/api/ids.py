"""Ids that no two requests share. They are no secrets."""

from __future__ import annotations

import random
import secrets

# Seeded once by the system's randomness: to ask that for every request costs more than all else that an id takes.
_RANDOM = random.Random(secrets.randbits(256))  # noqa: S311


def new_id() -> str:
    """24 hexadecimal digits."""
    return f"{_RANDOM.getrandbits(96):024x}"

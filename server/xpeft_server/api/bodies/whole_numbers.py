"""Integer fields also take 4.0, as JSON Schema does."""

from __future__ import annotations

from typing import Final

from pydantic import BeforeValidator


def _as_integer(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Last among a field's annotations: its bounds are then those of the integer.
WHOLE: Final = BeforeValidator(_as_integer)

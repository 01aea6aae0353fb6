"""Values of JSON bodies, for messages."""

from __future__ import annotations

import reprlib

import orjson


class _Short(reprlib.Repr):
    """Its bounds, and JSON's words where Python has others."""

    def repr_str(self, x: str, level: int) -> str:
        del level
        text = _quoted(x[: self.maxstring])
        if len(text) <= self.maxstring:
            return text
        half = (self.maxstring - len(self.fillvalue)) // 2
        return text[:half] + self.fillvalue + _quoted(x[-half:])[-half:]

    def repr_bool(self, x: bool, level: int) -> str:
        del level
        return "true" if x else "false"

    def repr_NoneType(self, x: None, level: int) -> str:  # noqa: N802
        del x, level
        return "null"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 2


def shown_json(value: object) -> str:
    """A parsed value as it stood in the body, cut so that a hostile megabyte does not travel back."""
    return _SHORT.repr(value)


def _quoted(text: str) -> str:
    return orjson.dumps(text).decode()

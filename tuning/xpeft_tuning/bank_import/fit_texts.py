"""The texts that tell what the PLM's feed-forwards compute: some to fit by, the others to measure the fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from .errors import FitTextsInvalid

MIN_FIT = 0.5
"""Share of a LoRA's variance, measured on texts that took no part, below which it is refused unless asked for."""

_MEASURED = 5  # every fifth


class FitTexts(NamedTuple):
    """Both have one text at least; ``measured`` are never fitted by."""

    fitted: tuple[str, ...]
    measured: tuple[str, ...]


def read_fit_texts(path: Path) -> FitTexts:
    """Read a file of UTF-8, a text a line; empty lines are skipped, every fifth text is kept for measuring.

    Raises: FitTextsInvalid, naming the file; also for JSON lines, which the PLM would read braces and all.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise FitTextsInvalid(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise FitTextsInvalid(f"{path} is not UTF-8 at byte {error.start}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if texts and _is_json_object(texts[0]):
        raise FitTextsInvalid(
            f"{path} begins with the JSON object {texts[0][:40]!r}…, it must have plain texts, a line each"
        )
    if len(texts) < _MEASURED:
        raise FitTextsInvalid(
            f"{path} has {len(texts)} texts, it must have {_MEASURED} at least: every {_MEASURED}th is kept to measure "
            "the fit, and a thousand sentences of the kind that will be served make a good one"
        )
    measured = texts[_MEASURED - 1 :: _MEASURED]
    fitted = [text for number, text in enumerate(texts, start=1) if number % _MEASURED]
    return FitTexts(tuple(fitted), tuple(measured))


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False

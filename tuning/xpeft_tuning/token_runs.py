"""Texts in runs that fit on the device together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def token_runs(lengths: Iterable[int], tokens: int) -> Iterator[slice]:
    """Cut texts, in order, into runs of at most ``tokens`` tokens and at least one text.

    Args: lengths: tokens of each text.
    """
    start = end = total = 0
    for length in lengths:
        if total + length > tokens and end > start:
            yield slice(start, end)
            start, total = end, 0
        end += 1
        total += length
    if end > start:
        yield slice(start, end)

"""Sizes of the batches that have a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .placed_batch import BatchSize

_FINE: Final = 8
"""Sizes from a power of two to the next: filler is at most an eighth of a batch, a sixteenth on average."""

_SMALLEST: Final = 64

_STEP: Final = 16

_TOKENS_PER_SEQUENCE: Final = 8
"""Batches of shorter texts than that need a bucket of more tokens."""


def buckets_up_to(tokens: int) -> list[BatchSize]:
    """Ascending, the last one for batches of ``tokens``: multiples of 64 that are an eighth apart."""
    sizes = []
    size = _SMALLEST
    while size < tokens:
        sizes.append(size)
        size += max(_SMALLEST, (1 << (size.bit_length() - 1)) // _FINE)
    return [BatchSize(each, max(1, each // _TOKENS_PER_SEQUENCE)) for each in (*sizes, tokens)]


def smallest_that_holds(buckets: Iterable[BatchSize], tokens: int, sequences: int) -> BatchSize | None:
    """Of ascending buckets; None if the batch is too large for all."""
    return next((each for each in buckets if tokens <= each.tokens and sequences <= each.sequences), None)


def steps_up_to(tokens: int) -> list[int]:
    """Tokens of the steps of generation that have a graph, ascending: powers of two, from 16 on multiples of 16 or an
    eighth apart."""
    sizes = [size for size in (1, 2, 4, 8) if size < tokens]
    size = _STEP
    while size < tokens:
        sizes.append(size)
        size += max(_STEP, (1 << (size.bit_length() - 1)) // _FINE)
    return [*sizes, tokens]

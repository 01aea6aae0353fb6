"""What attend_packed refuses, whichever implementation runs."""

from __future__ import annotations

from torch import Tensor

from ..sequences import PlacedSequences, Sequences


def check_attend(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences | PlacedSequences, *, window: int | None
) -> None:
    """Raises: ValueError with the shapes, dtypes, strides or the window that do not fit."""
    tokens = sequences.tokens
    shapes = tuple(query.shape), tuple(key.shape), tuple(value.shape)
    if query.ndim != 3 or key.ndim != 3 or query.shape[::2] != key.shape[::2] or key.shape != value.shape:
        raise ValueError("query {}, key {} and value {} do not fit".format(*shapes))
    if query.shape[0] != tokens:
        raise ValueError(f"query has {query.shape[0]} rows, the sequences have {tokens}")
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are no multiple of {key.shape[1]} key heads")
    if not query.dtype == key.dtype == value.dtype or not query.is_floating_point():
        raise ValueError(f"query is {query.dtype}, key {key.dtype}, value {value.dtype}: they must be one float dtype")
    strides = query.stride(), key.stride(), value.stride()
    if query.shape[2] > 1 and any(each[2] != 1 for each in strides):
        raise ValueError("query, key and value have strides {}, {}, {}: the last must be 1".format(*strides))
    if window is not None and window < 1:
        raise ValueError(f"window {window} is less than 1")

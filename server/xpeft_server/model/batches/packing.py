"""A batch as one row of tokens: sequences end to end, those of one profile next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from xpeft_kernels import MIN_ROWS, Tiles

from ..lanes import on_device
from ..tokens.tokenizing import TokenizedText
from .sequence_groups import SequenceGroups

_FEW_THREADS = 8
_VECTORS = 32
"""Floats that PyTorch's widest CPU code processes at once (two AVX-512 registers)."""


def packed_order(slots: ArrayLike, lengths: ArrayLike) -> NDArray[np.intp]:
    """The order in which sequences are packed: by profile; profiles, and the sequences of each, by length.

    Neighbours of equal length share an attention call, and profiles with equally many tokens a stack of adapters.
    """
    slot, length = np.asarray(slots), np.asarray(lengths)
    _, profile = np.unique(slot, return_inverse=True)
    tokens = np.bincount(profile, weights=length)[profile]
    return np.lexsort((length, slot, tokens))


def even_rows(tokens: int, width: int, threads: int) -> int:
    """The fewest rows, at least ``tokens`` and 16, for which a CPU computes all rows in the same way.

    From 12 threads on, MKL multiplies one to three leftover rows differently (measured up to 128 threads). PyTorch cuts
    ``[rows, width]`` into one piece for each thread, and computes what is left of a piece after whole vectors in scalar
    code, which rounds SiLU and GELU differently: so every piece has to be whole vectors. How many pieces there are is
    decided in ATen/Parallel.h and, for GELU, in cpu/Activation.cpp.

    Args:
        width: elements of a row inside the feed-forward; 0: only the 16 rows matter.
        threads: of PyTorch.
    """
    rows = max(tokens, MIN_ROWS)
    while (threads > _FEW_THREADS and rows % 4) or not _splits_evenly(rows * width, threads):
        rows += 1
    return rows


def _splits_evenly(elements: int, threads: int) -> bool:
    pieces = {min(threads, -(-elements // 32768)), threads if elements > 16384 else 1}
    return elements % _VECTORS == 0 and all(-(-elements // count) % _VECTORS == 0 for count in pieces if count)


@dataclass(frozen=True)
class PackedBatch:
    """Q sequences as T rows. If there are too few rows (see `even_rows`), filler that nothing reads comes last.

    Args:
        input_ids, position_ids: ``[1, T]`` int64; token_type_ids likewise where the model has segments.
        starts, ends: ``[Q]`` int64, first row of each real sequence and the row behind its last.
        owners: ``[T']`` int64, sequence of each row, without filler.
        groups: with filler.
        tiles: rows of each slot, covering all T; None for the bare PLM.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor | None
    starts: Tensor
    ends: Tensor
    owners: Tensor
    groups: SequenceGroups
    tiles: Tiles | None

    @property
    def sequences(self) -> int:
        """Q."""
        return self.starts.numel()


class PackedRows(NamedTuple):
    """Q sequences end to end, on the host.

    Args:
        ids, positions, types: ``[T]``.
        lengths: ``[Q]`` int64.
    """

    ids: NDArray[np.int32]
    positions: NDArray[np.int64]
    types: NDArray[np.int32]
    lengths: NDArray[np.int64]

    @property
    def size(self) -> tuple[int, int]:
        """T and Q."""
        return self.ids.size, self.lengths.size

    @classmethod
    def of(cls, texts: Sequence[TokenizedText], *, first_position: int) -> PackedRows:
        """Args: first_position: position id of each sequence's first token.

        RoBERTa numbers positions from its padding token's id + 1. A padding token within a text has that id as its
        position, and is not counted.
        """
        length = np.fromiter(map(len, texts), np.int64, len(texts))
        ids, types = (np.concatenate(each) for each in zip(*((text.ids, text.type_ids) for text in texts), strict=True))
        padding = first_position - 1
        counted = ids != padding
        count = np.cumsum(counted)
        before = np.r_[0, count][np.cumsum(length) - length]
        positions = np.where(counted, count - np.repeat(before, length) + padding, padding)
        return cls(ids, positions, types, length)


def pack(
    texts: Sequence[TokenizedText],
    slots: Sequence[int] | None,
    *,
    first_position: int = 0,
    feed_forward: int = 0,
    device: torch.device | str = "cpu",
) -> PackedBatch:
    """Lay the texts end to end in the order given (see `packed_order`).

    Args:
        texts: Q ≥ 1 token lists, none empty.
        slots: the slot of each text's profile; None for the bare PLM.
        first_position: position id of each sequence's first token.
        feed_forward: width of a row inside the model's feed-forward; 0 on devices that compute all rows alike.
    """
    real, tokens = len(texts), sum(map(len, texts))
    filler = even_rows(tokens, feed_forward, torch.get_num_threads()) - tokens
    if filler:
        last = texts[-1]
        texts = [*texts, TokenizedText(np.repeat(last.ids[:1], filler), np.repeat(last.type_ids[:1], filler))]
        slots = None if slots is None else [*slots, slots[-1]]
    rows = PackedRows.of(texts, first_position=first_position)
    end = np.cumsum(rows.lengths)

    def put(values: NDArray[np.integer]) -> Tensor:
        return on_device(values.astype(np.int64, copy=False), device)

    return PackedBatch(
        input_ids=put(rows.ids)[None],
        position_ids=put(rows.positions)[None],
        token_type_ids=put(rows.types)[None],
        starts=put((end - rows.lengths)[:real]),
        ends=put(end[:real]),
        owners=put(np.repeat(np.arange(real), rows.lengths[:real])),
        groups=SequenceGroups.of(rows.lengths),
        tiles=None if slots is None else Tiles.of(slots, rows.lengths.tolist(), device),
    )

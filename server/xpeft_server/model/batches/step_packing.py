"""One step of generation as a packed row: the new tokens of each sequence, those of one profile together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import Tiles

from ..kv.attention import KvStep, Row, Run
from ..kv.cache import KvStore
from ..lanes import on_device
from ..sampling.prompt_logprobs import Targets
from .packing import even_rows, packed_order

if TYPE_CHECKING:
    from ..kv.arena_step import ArenaStep


class Chunk(NamedTuple, Generic[Row]):
    """A sequence's part in a step.

    Args:
        ids: ``[n]`` its new tokens.
        past: tokens already in ``row``; the new ones go behind them.
        slot: of its profile.
        asks: whether the logits behind its last new token are needed.
        targets: prompt tokens whose logprobs, behind the new ones, are wanted.
    """

    ids: NDArray[np.int32]
    past: int
    row: Row
    slot: int
    asks: bool
    targets: Targets | None = None


class StepRows(NamedTuple, Generic[Row]):
    """A step's T tokens end to end, those of one profile together; on the host.

    Args:
        ids, positions: ``[T]`` int64.
        slots, lengths: ``[Q]``, of each sequence in packed order.
        asking: last token of each chunk that asks, in the order of the chunks.
        runs: in the order of the chunks.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    lengths: NDArray[np.int64]
    asking: NDArray[np.int64]
    runs: list[Run[Row]]

    @classmethod
    def of(cls, chunks: Sequence[Chunk[Row]]) -> StepRows[Row]:
        length = np.array([chunk.ids.size for chunk in chunks])
        slot = np.array([chunk.slot for chunk in chunks])
        past = np.array([chunk.past for chunk in chunks])
        order = packed_order(slot, length)
        lengths = length[order]
        start = np.empty_like(length)
        start[order] = np.cumsum(lengths) - lengths
        runs = [
            Run(chunk.row, begin, count, chunk.past)
            for chunk, begin, count in zip(chunks, start.tolist(), length.tolist(), strict=True)
        ]
        asks = np.array([chunk.asks for chunk in chunks], bool)
        return cls(
            ids=np.concatenate([chunks[i].ids for i in order]).astype(np.int64),
            positions=np.arange(lengths.sum()) + np.repeat((past - start)[order], lengths),
            slots=slot[order],
            lengths=lengths,
            asking=(start + length - 1)[asks],
            runs=runs,
        )


@dataclass(frozen=True)
class StepBatch:
    """T packed tokens, filler included (see `even_rows`).

    Args:
        input_ids, position_ids: ``[1, T]`` int64.
        groups: what attention needs.
    """

    input_ids: Tensor
    position_ids: Tensor
    groups: KvStep | ArenaStep
    tiles: Tiles


def pack_step(rows: StepRows[Row], store: KvStore[Row], *, feed_forward: int) -> StepBatch:
    """Move the rows to the device of the store that holds their sequences.

    Args:
        feed_forward: width of a row inside the model's feed-forward; 0 on devices that compute all rows alike.
    """
    device = store.shape.device
    tokens = rows.ids.size
    filler = even_rows(tokens, feed_forward, torch.get_num_threads()) - tokens
    lengths = rows.lengths.copy()
    lengths[-1] += filler
    return StepBatch(
        input_ids=on_device(np.pad(rows.ids, (0, filler)), device)[None],
        position_ids=on_device(np.pad(rows.positions, (0, filler)), device)[None],
        groups=store.step(rows.runs, tokens + filler),
        tiles=Tiles.of(rows.slots.tolist(), lengths.tolist(), device),
    )

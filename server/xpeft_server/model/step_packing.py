"""One step of generation as a row of tokens: each sequence's new ones, those of one profile next to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import Tiles

from .kv_attention import KvStep, Run
from .kv_cache import KvRow
from .packing import even_rows, packed_order


class Chunk(NamedTuple):
    """A sequence's part in a step.

    Args:
        ids: ``[n]`` its new tokens.
        past: tokens that stand in ``row`` already; the new ones go behind them.
        slot: of its profile.
        asks: whether the logits behind the last new token are wanted.
    """

    ids: NDArray[np.int32]
    past: int
    row: KvRow
    slot: int
    asks: bool


@dataclass(frozen=True)
class StepBatch:
    """T packed tokens, filler included (see `even_rows`).

    Args:
        input_ids, position_ids: ``[1, T]`` int64.
        asking: ``[Q]`` int64, last token of each chunk that asks, in the order of the chunks.
        groups: what attention needs.
    """

    input_ids: Tensor
    position_ids: Tensor
    asking: Tensor
    groups: KvStep
    tiles: Tiles


def pack_step(chunks: Sequence[Chunk], *, feed_forward: int, device: torch.device) -> StepBatch:
    """Lay the chunks end to end, sorted by profile.

    Args:
        feed_forward: width of a row inside the model's feed-forward; 0 on devices that treat all rows alike.
    """
    length = np.array([chunk.ids.size for chunk in chunks])
    slot = np.array([chunk.slot for chunk in chunks])
    past = np.array([chunk.past for chunk in chunks])
    order = packed_order(slot, length)
    tokens = int(length.sum())
    filler = even_rows(tokens, feed_forward, torch.get_num_threads()) - tokens
    start = np.empty_like(length)
    start[order] = np.cumsum(length[order]) - length[order]
    ids = np.zeros(tokens + filler, np.int64)
    position = np.zeros(tokens + filler, np.int64)
    ids[:tokens] = np.concatenate([chunks[i].ids for i in order])
    position[:tokens] = np.arange(tokens) + np.repeat((past - start)[order], length[order])
    tiled = length[order]
    tiled[-1] += filler
    runs = [
        Run(chunk.row, begin, count, chunk.past)
        for chunk, begin, count in zip(chunks, start.tolist(), length.tolist(), strict=True)
    ]
    asks = np.array([chunk.asks for chunk in chunks], bool)

    def put(values: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    return StepBatch(
        input_ids=put(ids)[None],
        position_ids=put(position)[None],
        asking=put((start + length - 1)[asks].astype(np.int64)),
        groups=KvStep(runs, device),
        tiles=Tiles.of(slot[order].tolist(), tiled.tolist(), device),
    )

"""Chooses the attention kernel of graphs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from statistics import median
from typing import Final

import numpy as np
import torch

from xpeft_kernels import query_rows

from ..batches.packing import PackedRows
from ..errors import ModelUnusable
from ..lanes import Lanes
from ..packed_sequences import AttentionKernel, PackedSequences
from ..plm import Plm
from ..tokens.tokenizing import TokenizedText
from .buckets import buckets_up_to
from .placed_batch import BatchSize, PieceSizes, StaticBatch

logger = logging.getLogger(__name__)

_ROUNDS: Final = 7
_CALLS: Final = 10
_LENGTH: Final = 64
_SIZES: Final = (2048, 8192)


def choose_attention(plm: Plm, lanes: Lanes, *, tokens: int) -> AttentionKernel:
    """Ours or PyTorch's, whichever is faster; in float32 and on CPU there is only ours.

    Args:
        tokens: of the largest batch that has a graph.
    Raises: ModelUnusable if neither runs.
    """
    if plm.device.type != "cuda" or plm.dtype == torch.float32:
        return AttentionKernel.OURS
    sizes = {min(size, tokens) for size in _SIZES}
    return fastest_attention(plm, lanes, [each for each in buckets_up_to(tokens) if each.tokens in sizes])


def fastest_attention(plm: Plm, lanes: Lanes, buckets: Sequence[BatchSize]) -> AttentionKernel:
    """The kernel that takes the least time for a token over these buckets, measured.

    A graph launches as many programs as its bucket has places for. A batch of texts of 64 tokens fills an eighth of
    them, so the cost of empty ones is part of the measurement.

    Raises: ModelUnusable if neither runs.
    """
    seconds: dict[AttentionKernel, list[float]] = {}
    for kernel in (AttentionKernel.OURS, AttentionKernel.VARLEN):
        try:
            seconds[kernel] = [_seconds(lanes, _attention(plm, lanes, bucket, kernel)) for bucket in buckets]
        except (ImportError, NotImplementedError, RuntimeError) as error:
            logger.warning("attention by %s cannot be had here: %s", kernel.value, error)
    if not seconds:
        raise ModelUnusable("plm: no kernel for attention over packed sequences runs on this device")

    def of_a_token(kernel: AttentionKernel) -> float:
        return sum(each / bucket.tokens for each, bucket in zip(seconds[kernel], buckets, strict=True))

    chosen = min(seconds, key=of_a_token)
    found = "; ".join(f"{each.value} {', '.join(f'{s * 1e6:.1f} µs' for s in seconds[each])}" for each in seconds)
    sizes = ", ".join(str(each.tokens) for each in buckets)
    logger.info("attention runs by %s (batches of %s tokens: %s)", chosen.value, sizes, found)
    return chosen


def _attention(plm: Plm, lanes: Lanes, bucket: BatchSize, kernel: AttentionKernel) -> Callable[[], None]:
    """Some calls of one block's attention, over a bucket full of texts of 64 tokens."""
    heads, kv_heads, size = plm.attention_shape
    groups = _full(plm, lanes, bucket, kernel)
    query, key, value = (
        torch.randn(1, bucket.tokens, count, size, dtype=plm.dtype, device=plm.device).transpose(1, 2)
        for count in (heads, kv_heads, kv_heads)
    )

    def run() -> None:
        for _ in range(_CALLS):
            groups.attend(query, key, value, scaling=None, window=None, causal=plm.family.decoder)

    return run


def _full(plm: Plm, lanes: Lanes, bucket: BatchSize, kernel: AttentionKernel) -> PackedSequences:
    """The sequences of a static batch, as in a graph."""
    pieces = PieceSizes(queries=query_rows(plm.attention_shape.size, plm.dtype.itemsize), tiles=bucket.tokens)
    limit = plm.tokenizer.limit
    static = StaticBatch(
        bucket,
        pieces,
        torch.zeros(StaticBatch.size_of(bucket, pieces), dtype=torch.uint8, device=plm.device),
        lanes,
        first_position=plm.first_position,
        longest=limit,
        attention=kernel,
    )
    ids = np.zeros(min(_LENGTH, limit, bucket.tokens), np.int32)
    count = min(bucket.sequences, bucket.tokens // ids.size)
    rows = PackedRows.of([TokenizedText(ids, ids)] * count, first_position=plm.first_position)
    static.load(static.stage(rows, None))
    return static.batch.groups


def _seconds(lanes: Lanes, run: Callable[[], None]) -> float:
    """Of one call within a graph: the median of some rounds."""
    run()
    repeat = lanes.graph(run, kept=False)
    found = []
    for _ in range(_ROUNDS):
        began = lanes.mark()
        repeat()
        ended = lanes.mark()
        ended.wait()
        found.append(ended.seconds_since(began) / _CALLS)
    return median(found)

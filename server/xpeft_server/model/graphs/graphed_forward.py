"""Forwards of packed batches as CUDA graphs: the host's work does not grow with the model."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from xpeft_kernels import Impl, piece_rows, query_rows

from ..banks.bank import Pooling
from ..batches.packing import PackedRows
from ..lanes import Lanes
from ..packed_sequences import AttentionKernel
from ..plm import Plm
from ..pooling import Pooled, pool
from ..recorded import recorded
from ..slots import SlotAdapters, SlotBuffers
from ..tokens.tokenizing import TokenizedText
from .buckets import buckets_up_to, smallest_that_holds
from .graph_set import Captured, GraphFacts, GraphSet
from .placed_batch import BatchSize, PieceSizes, StaticBatch


class GraphedForward:
    """A graph for every size of batch (see `buckets_up_to`): static inputs in, pooled vectors out.

    All graphs read one region of device memory and write another. One copy on the main lane brings a batch there, after
    the batch before it is done with both.

    Args:
        pooling: as the bank says.
        tokens: of the largest batch that has a graph.
        impl: of the operators; tests ask for Triton's, which runs without a GPU in its interpreter.
    """

    def __init__(
        self,
        plm: Plm,
        buffers: SlotBuffers,
        pooling: Pooling,
        lanes: Lanes,
        *,
        tokens: int,
        attention: AttentionKernel,
        impl: Impl = Impl.AUTO,
    ) -> None:
        self._plm = plm
        self._buffers = buffers
        self._pooling = pooling
        self._lanes = lanes
        self._attention = attention
        self._impl = impl
        self._buckets = buckets_up_to(tokens)
        self._graphs = {
            adapters: GraphSet[BatchSize, StaticBatch](lanes, plm.device, what)
            for adapters, what in ((True, "batches to classify"), (False, "batches of the bare PLM"))
        }
        sizes = [StaticBatch.size_of(each, self._pieces(each)) for each in self._buckets]
        self._memory = torch.zeros(max(sizes), dtype=torch.uint8, device=plm.device)
        self._pooled = torch.zeros(self._buckets[-1].sequences, plm.facts.hidden, device=plm.device)

    @property
    def facts(self) -> GraphFacts:
        graphs = self._graphs[True]
        return GraphFacts(len(graphs), max((each.tokens for each in graphs), default=0), graphs.bytes)

    def capture(self, *, adapters: bool = True) -> None:
        """A graph for every bucket that the device has room for, with the slots' adapters or of the bare PLM."""
        self._graphs[adapters].capture(self._buckets[::-1], lambda bucket: self._prepared(bucket, adapters))

    def pooled(self, rows: PackedRows, slots: NDArray[np.int64] | None) -> Pooled | None:
        """Vectors that are valid until the next batch; None if no graph holds this batch.

        Args:
            slots: ``[Q]``, of each sequence's profile; None for the bare PLM.
        """
        graphs = self._graphs[slots is not None]
        bucket = smallest_that_holds((each for each in self._buckets if each in graphs), *rows.size)
        if bucket is None:
            return None
        batch, repeat = graphs[bucket]
        with recorded("pack"):
            staged = batch.stage(rows, slots)
        began = self._lanes.mark()
        with recorded("forward"):
            batch.load(staged)
            repeat()
        return Pooled(self._pooled[: rows.lengths.size], began)

    def _prepared(self, bucket: BatchSize, adapters: bool) -> Captured[StaticBatch]:
        plm = self._plm
        static = StaticBatch(
            bucket,
            self._pieces(bucket),
            self._memory,
            self._lanes,
            first_position=plm.first_position,
            longest=plm.tokenizer.limit,
            attention=self._attention,
        )
        slots = SlotAdapters(self._buffers.adapters, static.batch.tiles, self._buffers.form, impl=self._impl)
        into = self._pooled[: bucket.sequences]

        def run() -> None:
            hidden = plm.forward(static.batch, slots if adapters else None)
            into.copy_(pool(hidden, static.batch, self._pooling))

        first = np.zeros(1, np.int32)
        one = PackedRows.of([TokenizedText(first, first)], first_position=plm.first_position)
        static.load(static.stage(one, np.zeros(1, np.int64)))
        return Captured(static, run)

    def _pieces(self, bucket: BatchSize) -> PieceSizes:
        itemsize = self._plm.dtype.itemsize
        return PieceSizes(
            queries=query_rows(self._plm.attention_shape.size, itemsize),
            tiles=piece_rows(bucket.tokens, self._buffers.form, itemsize),
        )

"""The PLM with the bank in it: packed batches of many profiles to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import FEW_TOKENS, apply_heads, chosen_implementations

from .banks.bank import Bank
from .batches.packing import PackedRows, pack, packed_order
from .graphs.attention_choice import choose_attention
from .graphs.graph_set import GraphFacts
from .graphs.graphed_forward import GraphedForward
from .launched import Launched
from .packed_sequences import AttentionKernel
from .plm import Plm
from .pooling import Pooled, pool
from .recorded import recorded
from .slots import Filled, SlotAdapters, SlotBuffers, SlotFill, check_width
from .tokens.tokenizing import TokenizedText

_EVERYWHERE: Final = ("aggregate_adapters", "apply_adapters", "apply_heads")
"""Operators that run on a CPU, too; its attention and pooling are PyTorch's."""


class ClassifierInput(NamedTuple):
    """One text, the slot of its profile, and the label rows ``[C]`` of its head in `SlotBuffers`."""

    text: TokenizedText
    slot: int
    head_rows: NDArray[np.int64]


class Classifier:
    """Owns the device tensors; one thread at a time calls it.

    Args:
        plm: loaded model.
        bank: a bank of that model, checked by `open_bank`; copied, so the caller need not keep it.
        slots: profiles that can be resident at once.
        head_rows: label rows for the resident profiles' own heads.
        graph_tokens: on a GPU, batches of up to so many tokens run as CUDA graphs, captured by `warm_up`; 0: none.
    Raises: BankInvalid if the adapters are too wide for the device's kernels; ModelUnusable if the device has no memory
        for the bank, or for so many slots.
    """

    def __init__(self, plm: Plm, bank: Bank, *, slots: int, head_rows: int, graph_tokens: int = 0) -> None:
        check_width(bank, device=plm.device, dtype=plm.dtype)
        self.plm = plm
        self.geometry = bank.geometry
        self._pooling = bank.pooling
        self.buffers = SlotBuffers(bank, slots=slots, head_rows=head_rows, device=plm.device, dtype=plm.dtype)
        self._attention = AttentionKernel.OURS
        self._graphs: GraphedForward | None = None
        if graph_tokens and self.buffers.lanes.asynchronous:
            self._attention = choose_attention(plm, self.buffers.lanes, tokens=graph_tokens)
            self._graphs = self._graphed(graph_tokens)

    @property
    def asynchronous(self) -> bool:
        """Whether `launch` returns before the batch is computed."""
        return self.buffers.lanes.asynchronous

    @property
    def graphs(self) -> GraphFacts:
        """Empty before `warm_up`."""
        return GraphFacts() if self._graphs is None else self._graphs.facts

    @property
    def kernels(self) -> Mapping[str, str]:
        """Operator → implementation, without those for which this device uses PyTorch's own."""
        chosen = chosen_implementations(self.plm.device.type) | self._attention.shown()
        return chosen if self.plm.device.type == "cuda" else {name: chosen[name] for name in _EVERYWHERE}

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Launch everything that a batch launches, so that no request pays for first use, and capture graphs.

        No profile's slot or label row is touched.
        """
        buffers = self.buffers
        buffers.warm_up(self.geometry)
        first = np.zeros(64, np.int32)
        # Kernels that are compiled at first use depend on the number of tokens.
        for count in (1, FEW_TOKENS // first.size + 1) if self.asynchronous else (1,):
            pooled = self._pooled([TokenizedText(first, first)] * count, [buffers.bare_slot] * count)
        self._logits(pooled.vectors, np.array([buffers.spare_head_row]), np.zeros(1, np.int64))
        if self._graphs is not None:
            self._graphs.capture()
        buffers.lanes.synchronize()

    @torch.inference_mode()
    def fill(self, fills: Sequence[SlotFill], *, overlap: bool = False) -> Filled:
        """Materialise profiles; see `SlotBuffers.fill`."""
        with recorded("fill"):
            return self.buffers.fill(fills, overlap=overlap)

    def logits(self, inputs: Sequence[ClassifierInput]) -> list[NDArray[np.float32]]:
        """Each input's logits ``[C]``, in the order of the inputs. They do not depend on the rest of the batch."""
        return self.launch(inputs).result()

    @torch.inference_mode()
    def launch(self, inputs: Sequence[ClassifierInput]) -> Launched:
        """As `logits`, without waiting for an asynchronous device."""
        lanes = self.buffers.lanes
        order = packed_order([each.slot for each in inputs], [len(each.text) for each in inputs]).tolist()
        packed = [inputs[i] for i in order]
        slots = [each.slot for each in packed]
        pooled, began = self._pooled([each.text for each in packed], slots)
        counts = [each.head_rows.size for each in packed]
        rows = np.concatenate([each.head_rows for each in packed])
        owners = np.repeat(np.arange(len(packed)), counts)
        logits = self._logits(pooled, rows, owners)
        ended = lanes.mark()
        self.buffers.note_readers(np.array(slots), rows, ended)
        return Launched(logits, counts, order, began, ended)

    @torch.inference_mode()
    def capture_bare(self) -> None:
        """Capture graphs for `bare`, too, if there are graphs. Serving does not need them."""
        if self._graphs is not None:
            self._graphs.capture(adapters=False)

    @torch.inference_mode()
    def bare(self, texts: Sequence[TokenizedText]) -> Launched:
        """Each text's pooled vector ``[H]`` from the PLM without adapters, packed in the order given."""
        lanes = self.buffers.lanes
        pooled, began = self._pooled(texts, None)
        vectors = lanes.download(pooled.flatten())
        counts = [self.plm.facts.hidden] * len(texts)
        return Launched(vectors, counts, range(len(texts)), began, lanes.mark())

    def _pooled(self, texts: Sequence[TokenizedText], slots: list[int] | None) -> Pooled:
        """Vectors that are valid until the next batch."""
        if self._graphs is not None:
            rows = PackedRows.of(texts, first_position=self.plm.first_position)
            pooled = self._graphs.pooled(rows, None if slots is None else np.array(slots))
            if pooled is not None:
                return pooled
        with recorded("pack"):
            batch = pack(
                texts,
                slots,
                first_position=self.plm.first_position,
                feed_forward=self.plm.feed_forward,
                device=self.plm.device,
            )
        buffers = self.buffers
        adapters = None if batch.tiles is None else SlotAdapters(buffers.adapters, batch.tiles, buffers.form)
        began = buffers.lanes.mark()
        with recorded("forward"):
            return Pooled(pool(self.plm.forward(batch, adapters), batch, self._pooling), began)

    def _logits(self, pooled: Tensor, rows: NDArray[np.int64], owners: NDArray[np.int64]) -> Tensor:
        """``[ΣC]`` on the host, valid once a mark made afterwards has passed; see `apply_heads`."""
        lanes, buffers = self.buffers.lanes, self.buffers
        with recorded("heads"):
            logits = apply_heads(
                pooled, buffers.head_weight, buffers.head_bias, lanes.upload(rows), lanes.upload(owners)
            )
            return lanes.download(logits)

    def _graphed(self, tokens: int) -> GraphedForward:
        return GraphedForward(
            self.plm,
            self.buffers,
            self._pooling,
            self.buffers.lanes,
            tokens=tokens,
            attention=self._attention,
        )

"""A decoder with the bank in it: one step of many sequences, each with its own profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batches.step_packing import Chunk, StepRows, pack_step
from .device_memory import room_for
from .errors import ModelUnusable
from .graphs.graph_set import GraphFacts
from .graphs.graphed_step import GraphedStep
from .kv.arena import KvArena
from .kv.cache import KvCache, KvShape, KvStore
from .lanes import on_device
from .plm import Plm
from .recorded import recorded
from .sampling.prompt_logprobs import LaunchedPromptLogprobs, launch_prompt_logprobs
from .slots import SlotAdapters, SlotBuffers

_NO_ROWS: Final = np.empty(0, np.int64)


class StepOutput(NamedTuple):
    """Args:
    logits: ``[Q, V]`` float32 behind the last token of each chunk that asks, in the order of the chunks.
    prompt_logprobs: of each chunk; None where it has no targets.
    """

    logits: Tensor
    prompt_logprobs: list[LaunchedPromptLogprobs | None]


class Decoder:
    """Owns the KV cache, and shares PLM and slots with the classifier; the same one thread calls both.

    Args:
        kv_tokens: size of the KV cache, in tokens.
        cache: its kind; None for an arena on a GPU and pools elsewhere.
        graph_tokens: on a GPU, steps of up to so many tokens run as CUDA graphs, captured by `warm_up`; 0: none.
    Raises: ModelUnusable if the PLM has no language-model head, its tokenizer's texts cannot be told piece by piece, or
        the device has no memory for so many tokens.
    """

    def __init__(
        self,
        plm: Plm,
        buffers: SlotBuffers,
        *,
        kv_tokens: int,
        cache: type[KvCache | KvArena] | None = None,
        graph_tokens: int = 0,
    ) -> None:
        if plm.vocabulary_head is None:
            raise ModelUnusable(f"plm: {plm.name!r} has no language-model head and does not generate")
        _ = plm.tokenizer.texts  # raises if its texts cannot be streamed
        self.plm = plm
        self.cache = _cache(plm, kv_tokens, cache or (KvArena if plm.device.type == "cuda" else KvCache))
        self._buffers = buffers
        self._head = plm.vocabulary_head
        self._graphs: GraphedStep | None = None
        if graph_tokens and buffers.lanes.asynchronous and isinstance(self.cache, KvArena):
            self._graphs = GraphedStep(plm, buffers, self.cache, tokens=graph_tokens)

    @property
    def graphs(self) -> GraphFacts:
        """Empty before `warm_up`."""
        return GraphFacts() if self._graphs is None else self._graphs.facts

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Launch everything that a step launches, so that no request pays for first use, and capture graphs."""
        if not self._buffers.lanes.asynchronous:
            return
        # The first token of a text, and the last of the longest: over many cached tokens sums may be split.
        for past in (0, self.limit - 1):
            row = self.cache.claim(past + 1)
            self.step([Chunk(np.zeros(1, np.int32), past, row, self._buffers.bare_slot, asks=True)])
            self.cache.release(row)
        if self._graphs is not None:
            self._graphs.capture()
        self._buffers.lanes.synchronize()

    @property
    def limit(self) -> int:
        """Most tokens of a sequence, prompt and answer together."""
        return min(self.plm.tokenizer.limit, self.cache.longest)

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk[Any]]) -> StepOutput:
        """Compute every chunk's tokens, and write their keys and values to its row.

        A step that failed can be repeated, whole or in parts: it writes the same values to the same places.
        """
        rows = StepRows.of(chunks)
        hidden = None if self._graphs is None else self._graphs.hidden(rows)
        if hidden is None:
            hidden = self._launched(rows)
        with recorded("vocabulary head"):
            logits: Tensor = self._head(hidden[on_device(rows.asking, self.plm.device)])
            prompt_logprobs = [
                chunk.targets and launch_prompt_logprobs(hidden[run.start :], self._head, chunk.targets)
                for chunk, run in zip(chunks, rows.runs, strict=True)
            ]
        # Nobody waits for the logits of a step of prefills alone: it may still run when a slot is filled.
        self._buffers.note_readers(rows.slots, _NO_ROWS, self._buffers.lanes.mark())
        return StepOutput(logits, prompt_logprobs)

    def _launched(self, rows: StepRows[Any]) -> Tensor:
        """``[T, H]``, operator by operator."""
        with recorded("pack"):
            batch = pack_step(rows, self.cache, feed_forward=self.plm.feed_forward)
        adapters = SlotAdapters(self._buffers.adapters, batch.tiles, self._buffers.form)
        with recorded("forward"):
            return self.plm.forward(batch, adapters)


def kv_shape(plm: Plm) -> KvShape:
    heads, kv_heads, size = plm.attention_shape
    return KvShape(
        blocks=plm.facts.blocks,
        heads=kv_heads,
        size=size,
        dtype=plm.dtype,
        device=plm.device,
        group=heads // kv_heads,
    )


def _cache(plm: Plm, tokens: int, kind: type[KvCache | KvArena]) -> KvStore[Any]:
    shape = kv_shape(plm)
    with room_for(f"kv_tokens: {tokens} tokens of keys and values take {tokens * shape.token_bytes} bytes", plm.device):
        return kind(shape, tokens=tokens, context=plm.tokenizer.limit)

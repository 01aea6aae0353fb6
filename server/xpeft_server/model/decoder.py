"""A decoder with the bank in it: one step of many sequences, each with its own profile."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import ModelUnusable
from .kv_cache import KvCache, KvShape
from .plm import Plm
from .recorded import recorded
from .slots import SlotAdapters, SlotBuffers
from .step_packing import Chunk, pack_step


class Decoder:
    """Owns the KV cache, and shares PLM and slots with the classifier; the same one thread calls both.

    Args:
        kv_tokens: room for keys and values, in tokens.
    Raises: ModelUnusable if the PLM has no language-model head, or its tokenizer's texts cannot be told piece by piece.
    """

    def __init__(self, plm: Plm, buffers: SlotBuffers, *, kv_tokens: int) -> None:
        if plm.vocabulary_head is None:
            raise ModelUnusable(f"plm: {plm.name!r} has no language-model head and does not generate")
        _ = plm.tokenizer.texts
        self.plm = plm
        self.cache = KvCache(kv_shape(plm), tokens=kv_tokens, context=plm.tokenizer.limit)
        self._buffers = buffers
        self._head = plm.vocabulary_head

    @property
    def limit(self) -> int:
        """Tokens that a sequence can have, prompt and answer together."""
        return min(self.plm.tokenizer.limit, self.cache.longest)

    @torch.inference_mode()
    def step(self, chunks: Sequence[Chunk]) -> Tensor:
        """Read every chunk's tokens, and leave their keys and values in its row.

        A step that failed can be repeated, whole or in parts: it writes the same to the same places.

        Returns: ``[Q, V]`` float32 logits behind the last token of each chunk that asks, in the order of the chunks.
        """
        with recorded("pack"):
            batch = pack_step(chunks, feed_forward=self.plm.feed_forward, device=self.plm.device)
        adapters = SlotAdapters(self._buffers.adapters, batch.tiles, self._buffers.form)
        with recorded("forward"):
            hidden = self.plm.forward(batch, adapters)
        with recorded("vocabulary head"):
            logits: Tensor = self._head(hidden[batch.asking])
        return logits


def kv_shape(plm: Plm) -> KvShape:
    config = plm.model.config
    heads = int(config.num_attention_heads)
    return KvShape(
        blocks=plm.facts.blocks,
        heads=int(getattr(config, "num_key_value_heads", None) or heads),
        size=int(getattr(config, "head_dim", None) or plm.facts.hidden // heads),
        dtype=plm.dtype,
        device=plm.device,
    )

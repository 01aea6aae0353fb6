"""The PLM without any adapter, in the product's packed form and in Hugging Face's padded one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModel, PreTrainedModel

from xpeft_server.model.banks.bank import Pooling
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool
from xpeft_server.model.tokens.tokenizing import TokenizedText


class BarePacked:
    """Packed by length, no adapters, and one head that all texts share."""

    def __init__(self, plm: Plm, pooling: Pooling, head: Tensor) -> None:
        self._plm = plm
        self._pooling = pooling
        self._head = head

    @torch.inference_mode()
    def __call__(self, texts: Sequence[TokenizedText]) -> NDArray[np.float32]:
        """``[Q, C]`` logits, in the order of length."""
        ordered = sorted(texts, key=len)
        batch = pack(ordered, None, first_position=self._plm.first_position, device=self._plm.device)
        pooled = pool(self._plm.forward(batch), batch, self._pooling)
        return linear(pooled, self._head).cpu().numpy()


class PaddedBatch:
    """Texts as a rectangle, padded on the right to the longest."""

    def __init__(self, texts: Sequence[TokenizedText], plm: Plm, padding: int) -> None:
        widest = max(map(len, texts))
        ids = np.full((len(texts), widest), padding, np.int64)
        types = np.zeros((len(texts), widest), np.int64)
        mask = np.zeros((len(texts), widest), np.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = text.ids
            types[row, : len(text)] = text.type_ids
            mask[row, : len(text)] = 1
        self.mask = torch.from_numpy(mask).to(plm.device)
        self.arguments: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids).to(plm.device),
            "attention_mask": self.mask,
        }
        if plm.family.token_types:
            self.arguments["token_type_ids"] = torch.from_numpy(types).to(plm.device)
        if plm.family.decoder:
            self.arguments["use_cache"] = False

    def pool(self, hidden: Tensor, pooling: Pooling) -> Tensor:
        """``[Q, n, H]`` → ``[Q, H]`` float32."""
        if pooling == "cls":
            return hidden[:, 0].float()
        lengths = self.mask.sum(dim=1)
        if pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1].float()
        return (hidden.float() * self.mask.unsqueeze(-1)).sum(dim=1) / lengths.unsqueeze(-1)


class BarePadded:
    """A model of its own as transformers loads it: padded batches, an attention mask, ``sdpa`` attention."""

    def __init__(self, plm: Plm, pooling: Pooling, head: Tensor, *, model: nn.Module | None = None) -> None:
        self._plm = plm
        self._pooling = pooling
        self._head = head
        self._model = model or load_plain_model(plm)
        self._padding = int(plm.model.config.pad_token_id or 0)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[TokenizedText], **arguments: Any) -> NDArray[np.float32]:
        """``[Q, C]`` logits, in the order of the texts."""
        batch = PaddedBatch(texts, self._plm, self._padding)
        hidden = self._model(**batch.arguments, **arguments).last_hidden_state
        return linear(batch.pool(hidden, self._pooling), self._head).cpu().numpy()


def load_plain_model(plm: Plm) -> PreTrainedModel:
    """The same weights again, untouched, with the attention that transformers itself chooses first."""
    options = {"add_pooling_layer": False} if plm.family.pooler else {}
    model: PreTrainedModel = AutoModel.from_pretrained(
        str(plm.model.name_or_path), dtype=plm.dtype, attn_implementation="sdpa", **options
    )
    model.requires_grad_(False).train(False).to(plm.device)
    return model

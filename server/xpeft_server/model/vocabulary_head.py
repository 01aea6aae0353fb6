"""What a decoder says next: its last hidden states to logits over its vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from .batches.packing import even_rows
from .prepacked import PrepackedLinear


class VocabularyHead(nn.Module):
    """A decoder's language-model head. The supported families put nothing but this product behind their last norm.

    Args:
        weight: ``[V, H]``; the embedding's own parameter where the checkpoint ties them, so that it is held once.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight
        self._prepacked: PrepackedLinear | None = None

    def prepack(self) -> None:
        """As `prepacked.prepack`; the weight stays beside it, as it may be the embedding's."""
        self._prepacked = PrepackedLinear(self.weight, None)

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of the token that follows each row; gradients pass to the rows
        unless it is prepacked.

        Semantics: logits = float32(rows @ weight.T), multiplied in the model's dtype

        Args:
            rows: ``[Q, H]`` of what `Plm.forward` returns, in its dtype.
        Returns: ``[Q, V]`` float32; in a float32 model on CPU a row's bits do not depend on its company.
        """
        count = rows.shape[0]
        filler = even_rows(count, 0, torch.get_num_threads()) - count if rows.device.type == "cpu" else 0
        filled = pad(rows, (0, 0, 0, filler))
        product = linear(filled, self.weight) if self._prepacked is None else self._prepacked(filled)
        return product[:count].float()

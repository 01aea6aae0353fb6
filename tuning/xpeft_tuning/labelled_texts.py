"""Examples as the device reads them: tokenised once, batched by rows and tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import Tiles
from xpeft_server.model.packing import PackedBatch, pack, packed_order
from xpeft_server.model.plm import Plm
from xpeft_server.model.tokenizing import TokenizedText

from .dataset import Example


class TextBatch(NamedTuple):
    """Texts of slot 0, packed; on the PLM's device.

    Args:
        places: ``[Q]`` int64, where the packed texts stand in `LabelledTexts`; targets: ``[Q]`` int64.
    """

    packed: PackedBatch
    tiles: Tiles
    places: Tensor
    targets: Tensor


class LabelledTexts:
    """Tokenised texts and the index of each one's label.

    Args:
        examples: any number of rows, also none.
        labels: what the indices stand for; every example's label is among them.

    Attributes:
        cut: how many texts were longer than the model takes and lost their end.
    """

    def __init__(self, plm: Plm, examples: Sequence[Example], labels: Sequence[str]) -> None:
        self._plm = plm
        pairs = [(row.text, row.text_pair) for row in examples]
        whole = plm.tokenizer.encode(pairs)
        self.cut = sum(len(text) > plm.tokenizer.limit for text in whole)
        self.texts: list[TokenizedText] = plm.tokenizer.encode(pairs, truncate=True) if self.cut else whole
        index = {label: number for number, label in enumerate(labels)}
        self.targets = torch.tensor([index[row.label] for row in examples], dtype=torch.int64, device=plm.device)

    def __len__(self) -> int:
        return len(self.texts)

    def by_length(self) -> NDArray[np.intp]:
        """Places in an order that packs well."""
        return np.argsort([len(text) for text in self.texts], kind="stable")

    def within(self, places: NDArray[np.integer], tokens: int) -> Iterator[NDArray[np.integer]]:
        """Part ``places``, in order, into runs of at most ``tokens`` tokens, at least one text each."""
        start = total = 0
        for end, place in enumerate(places):
            total += len(self.texts[place])
            if total > tokens and end > start:
                yield places[start:end]
                start, total = end, len(self.texts[place])
        if start < len(places):
            yield places[start:]

    def batches(self, places: NDArray[np.integer], tokens: int) -> Iterator[TextBatch]:
        """The texts at ``places``, packed in runs of at most ``tokens`` tokens."""
        for run in self.within(places, tokens):
            order = packed_order([0] * len(run), [len(self.texts[place]) for place in run])
            chosen = run[order]
            texts = [self.texts[place] for place in chosen]
            packed = pack(texts, [0] * len(texts), first_position=self._plm.first_position, device=self._plm.device)
            assert packed.tiles is not None  # noqa: S101
            where = torch.from_numpy(chosen.astype(np.int64)).to(self._plm.device)
            yield TextBatch(packed, packed.tiles, where, self.targets[where])

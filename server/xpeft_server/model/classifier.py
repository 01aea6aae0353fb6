"""The PLM with the bank in it: packed batches of many profiles to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from xpeft_kernels import apply_heads

from .bank import Bank
from .packing import pack, packed_order
from .plm import Plm
from .pooling import pool
from .recorded import recorded
from .slots import SlotAdapters, SlotBuffers, SlotFill
from .tokenizing import TokenizedText


class ClassifierInput(NamedTuple):
    """One text, the slot of its profile, and the label rows ``[C]`` of its head in `SlotBuffers`."""

    text: TokenizedText
    slot: int
    head_rows: NDArray[np.int64]


class Classifier:
    """Owns the device tensors; one thread at a time calls it.

    Args:
        plm: loaded model.
        bank: a bank of that model (see `open_bank`, which checks it); copied, so that the caller can let go of it.
        slots: profiles that can be resident at once.
        head_rows: label rows for the resident profiles' own heads.
    """

    def __init__(self, plm: Plm, bank: Bank, *, slots: int, head_rows: int) -> None:
        self.plm = plm
        self.geometry = bank.geometry
        self._pooling = bank.pooling
        self.buffers = SlotBuffers(bank, slots=slots, head_rows=head_rows, device=plm.device, dtype=plm.dtype)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """One bare forward, so that the first request does not pay for what libraries do at first use."""
        first = np.zeros(64, np.int32)
        batch = pack(
            [TokenizedText(first, first)], None, first_position=self.plm.first_position, device=self.plm.device
        )
        self.plm.forward(batch)

    @torch.inference_mode()
    def fill(self, fills: Sequence[SlotFill]) -> None:
        """Materialise profiles; see `SlotBuffers.fill`."""
        with recorded("fill"):
            self.buffers.fill(fills)

    @torch.inference_mode()
    def logits(self, inputs: Sequence[ClassifierInput]) -> list[NDArray[np.float32]]:
        """Each input's logits ``[C]``, in the order of the inputs. What is in the batch beside it does not matter."""
        order = packed_order([each.slot for each in inputs], [len(each.text) for each in inputs])
        packed = [inputs[i] for i in order]
        with recorded("pack"):
            batch = pack(
                [each.text for each in packed],
                [each.slot for each in packed],
                first_position=self.plm.first_position,
                feed_forward=self.plm.feed_forward,
                device=self.plm.device,
            )
        assert batch.tiles is not None  # noqa: S101
        adapters = SlotAdapters(self.buffers.adapters, batch.tiles, self.buffers.form)
        with recorded("forward"):
            pooled = pool(self.plm.forward(batch, adapters), batch, self._pooling)
        counts = [each.head_rows.size for each in packed]
        rows = torch.from_numpy(np.concatenate([each.head_rows for each in packed]))
        owners = torch.from_numpy(np.repeat(np.arange(len(packed)), counts))
        with recorded("heads"):
            flat = apply_heads(
                pooled,
                self.buffers.head_weight,
                self.buffers.head_bias,
                rows.to(self.plm.device, non_blocking=True),
                owners.to(self.plm.device, non_blocking=True),
            )
            logits = flat.cpu().numpy()
        parts = np.split(logits, np.cumsum(counts)[:-1])
        results: list[NDArray[np.float32]] = [parts[0]] * len(parts)
        for place, part in zip(order, parts, strict=True):
            results[place] = part
        return results

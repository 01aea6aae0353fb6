"""Sequences padded to one length: the input of a captured pass with gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xpeft_kernels import visible_keys, without_cudnn


@dataclass(frozen=True)
class PaddedBatch:
    """Q sequences of S tokens, end to end. Outputs for padding are meaningless and never read.

    Args:
        input_ids, position_ids, token_type_ids: ``[1, Q · S]`` int64; any valid values for padding.
    """

    input_ids: Tensor
    position_ids: Tensor
    token_type_ids: Tensor
    groups: PaddedSequences


class PaddedSequences:
    """Attention within each sequence, for one forward: it keeps the masks that the blocks share.

    Args:
        live: ``[Q]`` int64 on the device, tokens of each sequence before its padding; 0 counts as 1.
        length: S.
    """

    def __init__(self, live: Tensor, length: int) -> None:
        self._live = live
        self._length = length
        self._masks: dict[tuple[int | None, bool], Tensor] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None, causal: bool
    ) -> Tensor:
        """``[1, heads, T, d]``, key and value perhaps with fewer heads → ``[1, T, heads, d]``."""
        shape, repeats = (self._live.numel(), self._length), query.shape[1] // key.shape[1]
        q, k, v = (torch.unflatten(each[0], 1, shape).transpose(0, 1) for each in (query, key, value))
        if repeats > 1:
            k, v = (each.repeat_interleave(repeats, dim=1) for each in (k, v))
        seen = self._seen(window, causal)
        # A kernel that is not available would fail the capture.
        with without_cudnn(query.device):
            out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling)
        return out.transpose(1, 2).flatten(0, 1)[None]

    def _seen(self, window: int | None, causal: bool) -> Tensor:
        """``[Q, 1, S or 1, S]`` bool, which keys each query sees: at least one, or padding would give NaN."""
        if (window, causal) not in self._masks:
            position = torch.arange(self._length, device=self._live.device)
            seen = (position < self._live[:, None].clamp_min(1))[:, None, None]
            if window is not None or causal:
                near = visible_keys(self._length, self._live.device, causal=causal, window=window)
                seen = seen & near | (position[:, None] == position)
            self._masks[window, causal] = seen
        return self._masks[window, causal]

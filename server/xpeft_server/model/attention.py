"""Attention over a packed row: every sequence sees itself and nobody else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED_ATTENTION = "xpeft_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_groups: tuple[tuple[int, int], ...],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention within each sequence; neighbours of equal length share one call.

    Args:
        query: ``[1, heads, T, d]``; key and value may have fewer heads (grouped queries).
        packed_groups: (sequences, length) of each group of neighbours, in packed order, covering all T rows.
        sliding_window: tokens at this distance or more are not seen.
    Returns: ``[1, T, heads, d]``.
    """
    causal = bool(getattr(module, "is_causal", False))
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    start = 0
    for count, length in packed_groups:
        end = start + count * length
        q, k, v = (_sequences(each, start, end, count) for each in (query, key, value))
        mask = _window(length, sliding_window, causal, query.device) if sliding_window else None
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=grouped
        )
        outputs.append(out.transpose(1, 2).reshape(1, count * length, *out.shape[1::2]))
        start = end
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), None


def _sequences(states: Tensor, start: int, end: int, count: int) -> Tensor:
    """``[1, heads, T, d]`` → ``[count, heads, length, d]``, a view."""
    heads, _, size = states.shape[1:]
    return states[0, :, start:end].view(heads, count, -1, size).transpose(0, 1)


def _window(length: int, window: int, causal: bool, device: torch.device) -> Tensor | None:
    """``[length, length]`` bool mask, None where the window is wider than the sequence."""
    if length <= window:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near


AttentionInterface.register(PACKED_ATTENTION, packed_attention)

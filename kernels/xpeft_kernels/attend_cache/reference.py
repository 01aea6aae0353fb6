"""The specification of attend_cache, in PyTorch, and what runs on CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..fused_attention import without_cudnn
from ..visible_keys import visible_keys
from .checks import check_attend_cache
from .steps import PlacedSteps


def attend_cache_ref(
    query: Tensor, keys: Tensor, values: Tensor, steps: PlacedSteps, *, scale: float, window: int | None = None
) -> Tensor:
    """See `attend_cache`. A product a piece, which may have any number of query rows; any floating dtype. Of pieces
    with a part of a token's keys each, the first is computed with all of them."""
    check_attend_cache(query, keys, values, steps, window=window)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for first, count, base, past, span, _, _ in steps.pieces.tolist():
        if not count or span:
            continue
        end = past + count
        rows, seen = slice(first, first + count), slice(base, base + end)
        with without_cudnn(query.device):
            attended = scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],
                keys[seen].transpose(0, 1)[None],
                values[seen].transpose(0, 1)[None],
                attn_mask=visible_keys(end, query.device, causal=True, window=window, past=past),
                scale=scale,
                enable_gqa=query.shape[1] != keys.shape[1],
            )
        out[rows] = attended[0].transpose(0, 1)
    return out

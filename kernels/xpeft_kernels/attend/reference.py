"""The specification of attend_packed, in PyTorch; what runs on CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..fused_attention import without_cudnn
from ..sequences import PlacedSequences, Sequences
from ..visible_keys import visible_keys
from .checks import check_attend


def attend_packed_ref(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences | PlacedSequences,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """See `attend_packed`. One call a sequence; differentiable, in any float dtype, for heads of any size."""
    check_attend(query, key, value, sequences, window=window)
    if isinstance(sequences, PlacedSequences):
        raise ValueError("the reference needs the lengths on the host, in Sequences, not PlacedSequences")
    lengths = sequences.lengths.tolist()
    parts = []
    for q, k, v in zip(*(torch.split(each, lengths) for each in (query, key, value)), strict=True):
        mask = None
        if window is not None and window < len(q):
            mask = visible_keys(len(q), query.device, causal=causal, window=window)
        with without_cudnn(query.device):
            out = scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                k.transpose(0, 1)[None],
                v.transpose(0, 1)[None],
                attn_mask=mask,
                is_causal=causal and mask is None,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)

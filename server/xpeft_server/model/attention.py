"""Attention over a packed row: every sequence sees only itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from xpeft_kernels import visible_keys

from .batches.padded_batch import PaddedSequences
from .batches.sequence_groups import Bucket, SequenceGroups
from .kv.arena_step import ArenaStep
from .kv.attention import KvStep
from .packed_sequences import PackedSequences

PACKED_ATTENTION = "xpeft_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_groups: SequenceGroups | PackedSequences | PaddedSequences | KvStep | ArenaStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention within each sequence.

    On CPU, neighbours of equal length share a call, which gives a sequence the same bits whatever is beside it. If a
    gradient is needed, sequences of similar length share one, padded, because many small calls have a slow backward. On
    a GPU all sequences are one launch.

    Args:
        query: ``[1, heads, T, d]``; key and value may have fewer heads (grouped queries).
        packed_groups: which rows are one sequence, on the host or as tables on the device; or, when generating, where
            each sequence has its keys and values.
        sliding_window: tokens at this distance or more are not seen.
    Returns: ``[1, T, heads, d]``.
    """
    if isinstance(packed_groups, KvStep | ArenaStep):
        return packed_groups.attend(_block_of(module), query, key, value, scaling, sliding_window), None
    causal = bool(getattr(module, "is_causal", False))
    if isinstance(packed_groups, PackedSequences | PaddedSequences):
        return packed_groups.attend(query, key, value, scaling=scaling, window=sliding_window, causal=causal), None
    if query.requires_grad:
        return _with_gradient(query, key, value, packed_groups, scaling, sliding_window, causal), None
    if query.device.type == "cuda":
        packed = PackedSequences(packed_groups.sequences_on(query.device), None, query.shape[2])
        return packed.attend(query, key, value, scaling=scaling, window=sliding_window, causal=causal), None
    return _group_by_group(query, key, value, packed_groups, scaling, sliding_window, causal), None


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """One of each block, in their order; they say whether their tokens see those behind them."""
    return [module for module in model.modules() if hasattr(module, "is_causal")]


def _block_of(module: nn.Module) -> int:
    block: int = module.layer_idx  # type: ignore[assignment]  # transformers numbers every attention module
    return block


def _group_by_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: SequenceGroups,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> Tensor:
    """One call for each group of neighbours of equal length."""
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    start = 0
    for count, length in groups:
        end = start + count * length
        q, k, v = (_sequences(each, start, end, count) for each in (query, key, value))
        mask = None
        if window and window < length:
            mask = visible_keys(length, query.device, causal=causal, window=window)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling, enable_gqa=grouped
        )
        outputs.append(out.transpose(1, 2).reshape(1, count * length, *out.shape[1::2]))
        start = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _sequences(states: Tensor, start: int, end: int, count: int) -> Tensor:
    """``[1, heads, T, d]`` → ``[count, heads, length, d]``, a view."""
    heads, _, size = states.shape[1:]
    return states[0, :, start:end].view(heads, count, -1, size).transpose(0, 1)


def _with_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: SequenceGroups,
    scaling: float | None,
    window: int | None,
    causal: bool,
) -> Tensor:
    """Softmax written out: in bfloat16 on CPU its backward is five times faster than that of PyTorch's fused one."""
    padding, buckets = groups.buckets_on(query.device)
    counts = [each.sequences * each.length for each in buckets]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    repeats = query.shape[1] // key.shape[1]
    padded = [torch.split(padding.pad(each[0].transpose(0, 1)), counts) for each in (query, key, value)]
    outputs = []
    for bucket, q, k, v in zip(buckets, *padded, strict=True):
        q, k, v = (
            rows.view(bucket.sequences, bucket.length, *rows.shape[1:]).transpose(1, 2) for rows in (q * scale, k, v)
        )
        if repeats > 1:
            k, v = (each.repeat_interleave(repeats, dim=1) for each in (k, v))
        seen = _seen(bucket, window, causal, query.device)
        weights = (q @ k.mT).masked_fill(~seen, torch.finfo(q.dtype).min).softmax(dim=-1)
        outputs.append((weights @ v).transpose(1, 2).flatten(0, 1))
    return padding.unpad(torch.cat(outputs))[None]


def _seen(bucket: Bucket, window: int | None, causal: bool, device: torch.device) -> Tensor:
    """``[sequences, 1, length or 1, length]`` bool, which keys each query sees."""
    seen = bucket.real[:, None, None, :]
    if not (causal or window):
        return seen
    return seen & visible_keys(bucket.length, device, causal=causal, window=window)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)

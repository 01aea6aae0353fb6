"""attend_packed in Triton: some of a sequence's queries meet its keys block by block, with the softmax on the way."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference_only import refuse_dtypes, refuse_gradients
from ..sequences import PlacedSequences, Sequences
from .checks import check_attend
from .launch import Launch

WIDEST = 1 << 30
"""A wider window hides nothing either, and sums with it would leave int32."""


def attend_packed_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences | PlacedSequences,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """See `attend_packed`. A sequence's bits depend on its own values alone.

    Raises: ValueError also for float64 and where a gradient is asked for, which only the reference has.
    """
    check_attend(query, key, value, sequences, window=window)
    refuse_dtypes("attend_packed", query.dtype)
    refuse_gradients("attend_packed", query, key, value)
    heads, d = query.shape[1:]
    launch = Launch.of(d, query.element_size())
    pieces = sequences.pieces(launch.rows)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    _attend_packed_kernel[(pieces.shape[0], heads)](
        query,
        key,
        value,
        out,
        pieces,
        query.stride(0),
        query.stride(1),
        key.stride(0),
        key.stride(1),
        value.stride(0),
        value.stride(1),
        (d**-0.5 if scale is None else scale) * math.log2(math.e),
        0 if window is None else min(window, WIDEST),
        D=d,
        GROUP=heads // key.shape[1],
        CAUSAL=causal,
        WINDOW=window is not None,
        BLOCK_Q=launch.rows,
        BLOCK_K=launch.keys,
        BLOCK_D=launch.width,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend_packed_kernel(  # type: ignore[no-untyped-def]
    query,  # [T, heads, D]
    key,  # [T, heads / GROUP, D]
    value,  # as key
    out,  # [T, heads, D], contiguous
    pieces,  # [K, 3] int32: the sequence's first row, its rows, the piece's first row counted from there
    stride_query,
    stride_query_head,
    stride_key,
    stride_key_head,
    stride_value,
    stride_value_head,
    scale,  # times log2(e): powers of two stand for those of e
    window,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    p_piece = pieces + tl.program_id(0) * 3
    length = tl.load(p_piece + 1)
    if length == 0:
        return
    start = tl.load(p_piece).to(tl.int64)
    first = tl.load(p_piece + 2)
    i_head = tl.program_id(1)
    o_q = first + tl.arange(0, BLOCK_Q)
    o_row = start + o_q
    o_k = tl.arange(0, BLOCK_K)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_query = (o_q < length)[:, None] & m_d[None, :]
    p_query = query + i_head * stride_query_head + o_row[:, None] * stride_query + o_d[None, :]
    # [BLOCK_D, BLOCK_K] and [BLOCK_K, BLOCK_D], of the row that stands first in memory
    p_key = key + i_head // GROUP * stride_key_head + o_k[None, :] * stride_key + o_d[:, None]
    p_value = value + i_head // GROUP * stride_value_head + o_k[:, None] * stride_value + o_d[None, :]

    # [BLOCK_Q, BLOCK_D]
    b_query = tl.load(p_query, m_query, other=0.0)
    b_out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    b_highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_Q], tl.float32)
    low, high = 0, length
    if WINDOW:
        low = tl.maximum(first - window + 1, 0)
        high = tl.minimum(first + BLOCK_Q + window - 1, length)
    if CAUSAL:
        high = tl.minimum(first + BLOCK_Q, length)
    for begin in range(low, high, BLOCK_K):
        m_k = begin + o_k < length
        b_key = tl.load(p_key + (start + begin) * stride_key, m_d[:, None] & m_k[None, :], other=0.0)
        # [BLOCK_Q, BLOCK_K]
        b_score = tl.dot(b_query, b_key, input_precision="ieee") * scale
        m_seen = m_k[None, :]
        o_ago = o_q[:, None] - (begin + o_k)[None, :]
        if CAUSAL:
            m_seen = m_seen & (o_ago >= 0)
        if WINDOW:
            m_seen = m_seen & (o_ago < window) & (o_ago > -window)
        b_score = tl.where(m_seen, b_score, float("-inf"))
        b_higher = tl.maximum(b_highest, tl.max(b_score, 1))
        # A row that has seen nothing yet: -inf - -inf would be NaN.
        b_shift = tl.where(b_higher == float("-inf"), 0.0, b_higher)
        b_weight = tl.exp2(b_score - b_shift[:, None])
        b_decay = tl.exp2(b_highest - b_shift)
        b_total = b_total * b_decay + tl.sum(b_weight, 1)
        b_value = tl.load(p_value + (start + begin) * stride_value, m_k[:, None] & m_d[None, :], other=0.0)
        b_out = tl.dot(b_weight.to(b_value.dtype), b_value, b_out * b_decay[:, None], input_precision="ieee")
        b_highest = b_higher
    # Rows behind the sequence's last may have seen nothing at all.
    b_out = b_out / tl.where(b_total == 0.0, 1.0, b_total)[:, None]
    p_out = out + (o_row * tl.num_programs(1) + i_head)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), m_query)

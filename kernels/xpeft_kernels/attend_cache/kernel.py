"""attend_cache in Triton: the query heads that share a key meet a sequence's keys together, block by block."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference_only import refuse_dtypes, refuse_gradients
from .checks import check_attend_cache
from .join import join_parts, joined, normalised
from .launch import Launch
from .steps import SPAN, PlacedSteps


def attend_cache_triton(
    query: Tensor, keys: Tensor, values: Tensor, steps: PlacedSteps, *, scale: float, window: int | None = None
) -> Tensor:
    """See `attend_cache`. A program is a piece and a head of keys; where spans of a sequence may be in several pieces,
    a second kernel follows.

    Raises: ValueError also for float64 and where a gradient is asked for, which only the reference has.
    """
    check_attend_cache(query, keys, values, steps, window=window)
    refuse_dtypes("attend_cache", query.dtype)
    refuse_gradients("attend_cache", query, keys, values)
    (_, heads, d), kv_heads = query.shape, keys.shape[1]
    group = heads // kv_heads
    launch = Launch.of(group, d, query.element_size())
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    sums = torch.empty((steps.parts, heads, d), dtype=torch.float32, device=query.device)
    limits = torch.empty((steps.parts, heads, 2), dtype=torch.float32, device=query.device)
    if steps.pieces.shape[0]:
        _attend_cache_kernel[(steps.pieces.shape[0], kv_heads * triton.cdiv(group, launch.heads))](
            query,
            keys,
            values,
            out,
            sums,
            limits,
            steps.pieces,
            query.stride(0),
            query.stride(1),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            heads,
            scale * math.log2(math.e),
            0 if window is None else window,
            D=d,
            GROUP=group,
            HEADS=launch.heads,
            WINDOW=window is not None,
            SPAN=SPAN,
            BLOCK_M=launch.rows,
            BLOCK_K=launch.keys,
            BLOCK_D=launch.width,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    if steps.joins.shape[0]:
        join_parts(sums, limits, steps.joins, out, window)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend_cache_kernel(  # type: ignore[no-untyped-def]
    query,  # [T, heads, D]
    keys,  # [tokens, heads / GROUP, D]
    values,  # as keys
    out,  # [T, heads, D], contiguous
    sums,  # [parts, heads, D] float32, contiguous: of a span, each relative to its row's highest score
    limits,  # [parts, heads, 2] float32, contiguous: a row's highest score, and the sum of its weights
    pieces,  # [K, 7] int32, see Steps
    stride_query,
    stride_query_head,
    stride_key,
    stride_key_head,
    stride_value,
    stride_value_head,
    heads,
    scale,  # times log2(e): powers of two stand for those of e
    window,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    p_piece = pieces + tl.program_id(0) * 7
    count = tl.load(p_piece + 1)
    if count == 0:
        return
    first = tl.load(p_piece)
    base = tl.load(p_piece + 2).to(tl.int64)
    past = tl.load(p_piece + 3)
    PARTS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    i_key_head = tl.program_id(1) // PARTS

    # A row of the tile is a query head of a new token: i_group of those that share the key, o_q of the piece's tokens.
    o_m = tl.arange(0, BLOCK_M)
    o_q = o_m // HEADS
    i_group = tl.program_id(1) % PARTS * HEADS + o_m % HEADS
    i_head = i_key_head * GROUP + i_group
    o_row = (first + o_q).to(tl.int64)
    o_place = past + o_q
    o_k = tl.arange(0, BLOCK_K)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    m_row = (o_q < count) & (i_group < GROUP)
    m_query = m_row[:, None] & m_d[None, :]
    # [BLOCK_M, BLOCK_D]
    p_query = query + (o_row * stride_query + i_head * stride_query_head)[:, None] + o_d[None, :]
    b_query = tl.load(p_query, m_query, other=0.0)
    p_keys = keys + base * stride_key + i_key_head * stride_key_head
    p_values = values + base * stride_value + i_key_head * stride_value_head

    end = past + count
    begin = 0
    if WINDOW:
        begin = tl.maximum(past - window + 1, 0) // BLOCK_K * BLOCK_K
    spans = tl.load(p_piece + 5)
    span = tl.load(p_piece + 4)
    begin = tl.maximum(begin, span * SPAN)
    stop = tl.where(spans > 0, tl.minimum((span + spans) * SPAN, end), end)
    # [BLOCK_M], of the span 0
    o_part = tl.load(p_piece + 6).to(tl.int64) * heads + i_head

    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_M], tl.float32)
    b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_limit = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_weights = tl.zeros([BLOCK_M], tl.float32)
    # Blocks and spans are counted from the sequence's first token, and one of which a row sees nothing changes no bit
    # of it: so a row's sums are the same in whatever piece it lies.
    for start in range(begin, stop, BLOCK_K):
        o_token = start + o_k
        m_k = o_token < end
        # [BLOCK_D, BLOCK_K]
        p_key = p_keys + o_token.to(tl.int64)[None, :] * stride_key + o_d[:, None]
        b_key = tl.load(p_key, m_d[:, None] & m_k[None, :], other=0.0)
        # [BLOCK_M, BLOCK_K]
        b_score = tl.dot(b_query, b_key, input_precision="ieee") * scale
        o_ago = o_place[:, None] - o_token[None, :]
        m_seen = o_ago >= 0
        if WINDOW:
            m_seen = m_seen & (o_ago < window)
        b_score = tl.where(m_seen, b_score, float("-inf"))
        b_higher = tl.maximum(b_limit, tl.max(b_score, 1))
        # A row that has seen nothing yet: -inf - -inf would be NaN.
        b_shift = tl.where(b_higher == float("-inf"), 0.0, b_higher)
        b_weight = tl.exp2(b_score - b_shift[:, None])
        b_decay = tl.exp2(b_limit - b_shift)
        b_weights = b_weights * b_decay + tl.sum(b_weight, 1)
        # [BLOCK_K, BLOCK_D]
        p_value = p_values + o_token.to(tl.int64)[:, None] * stride_value + o_d[None, :]
        b_value = tl.load(p_value, m_k[:, None] & m_d[None, :], other=0.0)
        b_sum = tl.dot(b_weight.to(b_value.dtype), b_value, b_sum * b_decay[:, None], input_precision="ieee")
        b_limit = b_higher
        if ((start + BLOCK_K) % SPAN == 0) | (start + BLOCK_K >= stop):
            if spans > 0:
                o_own = o_part + start // SPAN * heads
                tl.store(sums + o_own[:, None] * D + o_d[None, :], b_sum, m_query)
                tl.store(limits + o_own * 2, b_limit, m_row)
                tl.store(limits + o_own * 2 + 1, b_weights, m_row)
            b_out, b_highest, b_total = joined(b_out, b_highest, b_total, b_sum, b_limit, b_weights)
            b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            b_limit = tl.full([BLOCK_M], float("-inf"), tl.float32)
            b_weights = tl.zeros([BLOCK_M], tl.float32)
    p_out = out + (o_row * heads + i_head)[:, None] * D + o_d[None, :]
    tl.store(p_out, normalised(b_out, b_total).to(out.dtype.element_ty), m_query & (spans == 0))

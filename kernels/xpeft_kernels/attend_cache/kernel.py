"""attend_cache in Triton: the query heads that share a key meet a sequence's keys together, block by block."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_attend_cache
from .launch import Launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def attend_cache_triton(
    query: Tensor, keys: Tensor, values: Tensor, pieces: Tensor, *, scale: float, window: int | None = None
) -> Tensor:
    """See `attend_cache`. A program is a piece and a head of keys.

    Raises: ValueError also for float64 and where a gradient is asked for, which only the reference has.
    """
    check_attend_cache(query, keys, values, pieces, window=window)
    if query.dtype not in DTYPES:
        raise ValueError(f"attend_cache has no {query.dtype} in Triton: ask for impl=Impl.REFERENCE")
    if torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad or values.requires_grad):
        raise ValueError("attend_cache has no gradient in Triton: ask for impl=Impl.REFERENCE")
    (_, heads, d), kv_heads = query.shape, keys.shape[1]
    group = heads // kv_heads
    launch = Launch.of(group, d, query.element_size())
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if pieces.shape[0]:
        _attend_cache_kernel[(pieces.shape[0], kv_heads * triton.cdiv(group, launch.heads))](
            query,
            keys,
            values,
            out,
            pieces,
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
            BLOCK_M=launch.rows,
            BLOCK_K=launch.keys,
            BLOCK_D=launch.width,
            num_warps=launch.warps,
            num_stages=launch.stages,
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _attend_cache_kernel(  # type: ignore[no-untyped-def]
    query,  # [T, heads, D]
    keys,  # [tokens, heads / GROUP, D]
    values,  # as keys
    out,  # [T, heads, D], contiguous
    pieces,  # [K, 4] int32: first query row, query rows, first cache row of the sequence, known tokens
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
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    p_piece = pieces + tl.program_id(0) * 4
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
    m_query = ((o_q < count) & (i_group < GROUP))[:, None] & m_d[None, :]
    # [BLOCK_M, BLOCK_D]
    p_query = query + (o_row * stride_query + i_head * stride_query_head)[:, None] + o_d[None, :]
    b_query = tl.load(p_query, m_query, other=0.0)
    p_keys = keys + base * stride_key + i_key_head * stride_key_head
    p_values = values + base * stride_value + i_key_head * stride_value_head

    b_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_M], tl.float32)
    end = past + count
    begin = 0
    if WINDOW:
        begin = tl.maximum(past - window + 1, 0) // BLOCK_K * BLOCK_K
    # Blocks are counted from the sequence's first token, and one of which a row sees nothing changes no bit of it: so
    # a row's sums are the same in whatever piece it lies.
    for start in range(begin, end, BLOCK_K):
        o_token = start + o_k
        m_k = o_token < end
        # [BLOCK_D, BLOCK_K]
        b_key = tl.load(
            p_keys + o_token.to(tl.int64)[None, :] * stride_key + o_d[:, None], m_d[:, None] & m_k[None, :], other=0.0
        )
        # [BLOCK_M, BLOCK_K]
        b_score = tl.dot(b_query, b_key, input_precision="ieee") * scale
        o_ago = o_place[:, None] - o_token[None, :]
        m_seen = o_ago >= 0
        if WINDOW:
            m_seen = m_seen & (o_ago < window)
        b_score = tl.where(m_seen, b_score, float("-inf"))
        b_higher = tl.maximum(b_highest, tl.max(b_score, 1))
        # A row that has seen nothing yet: -inf - -inf would be NaN.
        b_shift = tl.where(b_higher == float("-inf"), 0.0, b_higher)
        b_weight = tl.exp2(b_score - b_shift[:, None])
        b_decay = tl.exp2(b_highest - b_shift)
        b_total = b_total * b_decay + tl.sum(b_weight, 1)
        # [BLOCK_K, BLOCK_D]
        b_value = tl.load(
            p_values + o_token.to(tl.int64)[:, None] * stride_value + o_d[None, :],
            m_k[:, None] & m_d[None, :],
            other=0.0,
        )
        b_out = tl.dot(b_weight.to(b_value.dtype), b_value, b_out * b_decay[:, None], input_precision="ieee")
        b_highest = b_higher
    # Rows behind the piece's last may have seen nothing at all.
    b_out = b_out / tl.where(b_total == 0.0, 1.0, b_total)[:, None]
    p_out = out + (o_row * heads + i_head)[:, None] * D + o_d[None, :]
    tl.store(p_out, b_out.to(out.dtype.element_ty), m_query)

"""Sums over a sequence's spans, joined in their order: in registers, or by a second kernel from what pieces left."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .steps import SPAN


class Tile(NamedTuple):
    """Heads and padded d of a program of `join_parts`, and its warps."""

    heads: int
    width: int
    warps: int

    @classmethod
    def of(cls, heads: int, d: int) -> Tile:
        """At most 8 numbers a thread."""
        width = triton.next_power_of_2(d)
        return cls(heads=min(triton.next_power_of_2(heads), max(1, 1024 // width)), width=width, warps=4)


@triton.jit
def joined(b_out, b_highest, b_total, b_sum, b_limit, b_weights):  # type: ignore[no-untyped-def]
    """Join what some rows have so far with what the next span has: weighted sums of values, relative to the highest
    score; the highest scores; and sums of weights. Explicit fused multiply-adds leave the compiler no choice."""
    b_higher = tl.maximum(b_highest, b_limit)
    # A row that has seen nothing yet: -inf - -inf would be NaN.
    b_shift = tl.where(b_higher == float("-inf"), 0.0, b_higher)
    b_decay = tl.exp2(b_highest - b_shift)
    b_weight = tl.exp2(b_limit - b_shift)
    b_total = tl.fma(b_total, b_decay, b_weights * b_weight)
    b_decay = tl.broadcast_to(b_decay[:, None], b_out.shape)
    b_out = tl.fma(b_out, b_decay, b_sum * b_weight[:, None])
    return b_out, b_higher, b_total


@triton.jit
def normalised(b_out, b_total):  # type: ignore[no-untyped-def]
    # Rows behind a piece's last may have seen nothing at all.
    return b_out / tl.where(b_total == 0.0, 1.0, b_total)[:, None]


def join_parts(sums: Tensor, limits: Tensor, joins: Tensor, out: Tensor, window: int | None) -> None:
    """Write the rows of ``out`` whose spans are in several pieces.

    Args:
        sums, limits: ``[parts, heads, d]`` and ``[parts, heads, 2]`` float32, what the pieces left.
        joins: see `Steps`.
        out: ``[T, heads, d]``, contiguous.
    """
    heads, d = out.shape[1:]
    tile = Tile.of(heads, d)
    _join_parts_kernel[(joins.shape[0], triton.cdiv(heads, tile.heads))](
        sums,
        limits,
        joins,
        out,
        heads,
        0 if window is None else window,
        D=d,
        WINDOW=window is not None,
        SPAN=SPAN,
        BLOCK_H=tile.heads,
        BLOCK_D=tile.width,
        num_warps=tile.warps,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _join_parts_kernel(  # type: ignore[no-untyped-def]
    sums,  # [parts, heads, D] float32, contiguous
    limits,  # [parts, heads, 2] float32, contiguous
    joins,  # [J, 3] int32: query row, part of the first span, known tokens
    out,  # [T, heads, D], contiguous
    heads,
    window,
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    SPAN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    p_join = joins + tl.program_id(0) * 3
    past = tl.load(p_join + 2)
    if past == 0:
        return
    i_head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    o_d = tl.arange(0, BLOCK_D)
    m_head = i_head < heads
    m_out = m_head[:, None] & (o_d < D)[None, :]
    o_part = tl.load(p_join + 1).to(tl.int64) * heads + i_head
    # [BLOCK_H, BLOCK_D]
    b_out = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    b_highest = tl.full([BLOCK_H], float("-inf"), tl.float32)
    b_total = tl.zeros([BLOCK_H], tl.float32)
    low = 0
    if WINDOW:
        low = tl.maximum(past - window + 1, 0) // SPAN
    for i_span in range(low, past // SPAN + 1):
        o_own = o_part + i_span * heads
        b_sum = tl.load(sums + o_own[:, None] * D + o_d[None, :], m_out, other=0.0)
        b_limit = tl.load(limits + o_own * 2, m_head, other=0.0)
        b_weights = tl.load(limits + o_own * 2 + 1, m_head, other=0.0)
        b_out, b_highest, b_total = joined(b_out, b_highest, b_total, b_sum, b_limit, b_weights)
    o_row = tl.load(p_join).to(tl.int64) * heads + i_head
    tl.store(out + o_row[:, None] * D + o_d[None, :], normalised(b_out, b_total).to(out.dtype.element_ty), m_out)

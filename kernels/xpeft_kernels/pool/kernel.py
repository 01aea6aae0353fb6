"""mean_rows in Triton: a program adds up one sequence's rows, some columns at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference_only import refuse_gradients
from .checks import check_mean

BLOCK_H = 128
BLOCK_T = 16
"""Rows whose loads are in flight together; they are added one after the other."""


def mean_rows_triton(hidden: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """See `mean_rows`.

    Raises: ValueError also where a gradient is asked for, which only the reference has.
    """
    check_mean(hidden, starts, ends)
    refuse_gradients("mean_rows", hidden)
    sequences, width = starts.numel(), hidden.shape[1]
    out = torch.empty(sequences, width, device=hidden.device)
    if sequences:
        _mean_rows_kernel[(sequences, triton.cdiv(width, BLOCK_H))](
            hidden.contiguous(),
            starts.contiguous(),
            ends.contiguous(),
            out,
            width,
            BLOCK_T=BLOCK_T,
            BLOCK_H=BLOCK_H,
            num_warps=1,
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _mean_rows_kernel(  # type: ignore[no-untyped-def]
    hidden,  # [T, H]
    starts,  # [Q] int64
    ends,  # [Q] int64
    out,  # [Q, H] float32
    width,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    i_q = tl.program_id(0)
    start = tl.load(starts + i_q)
    count = (tl.load(ends + i_q) - start).to(tl.int32)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    m_h = o_h < width
    b_sum = tl.zeros([BLOCK_H], tl.float32)
    for begin in range(0, count, BLOCK_T):
        for i_t in tl.static_range(BLOCK_T):
            # [BLOCK_H]; a row behind the last adds zeros, which change nothing.
            p_row = hidden + (start + begin + i_t) * width + o_h
            b_sum += tl.load(p_row, m_h & (begin + i_t < count), other=0.0).to(tl.float32)
    b_mean = tl.div_rn(b_sum, tl.maximum(count, 1).to(tl.float32))
    tl.store(out + i_q.to(tl.int64) * width + o_h, b_mean, m_h)

"""apply_heads in Triton: a dot product a label row, whatever the profiles' numbers of labels are."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_heads

BLOCK_J = 8
BLOCK_H = 128


def apply_heads_triton(pooled: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, owners: Tensor) -> Tensor:
    """See `apply_heads`."""
    check_heads(pooled, weight, bias, rows, owners)
    logits = torch.empty(rows.numel(), device=pooled.device)
    if rows.numel():
        _apply_heads_kernel[(triton.cdiv(rows.numel(), BLOCK_J),)](
            pooled.contiguous(),
            weight.contiguous(),
            bias,
            rows,
            owners,
            logits,
            rows.numel(),
            pooled.shape[1],
            BLOCK_J=BLOCK_J,
            BLOCK_H=BLOCK_H,
            num_warps=4,
        )
    return logits


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def _apply_heads_kernel(  # type: ignore[no-untyped-def]
    pooled,  # [Q, H]
    weight,  # [D, H]
    bias,  # [D]
    rows,  # [J]
    owners,  # [J]
    logits,  # [J] float32
    count,
    hidden,
    BLOCK_J: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    o_j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    m_j = o_j < count
    i_row = tl.load(rows + o_j, m_j, other=0)
    i_owner = tl.load(owners + o_j, m_j, other=0)
    b_sum = tl.zeros([BLOCK_J], tl.float32)
    for start in range(0, hidden, BLOCK_H):
        o_h = start + tl.arange(0, BLOCK_H)
        m_jh = m_j[:, None] & (o_h < hidden)[None, :]
        # [BLOCK_J, BLOCK_H]
        b_pooled = tl.load(pooled + i_owner[:, None] * hidden + o_h[None, :], m_jh, other=0.0).to(tl.float32)
        b_weight = tl.load(weight + i_row[:, None] * hidden + o_h[None, :], m_jh, other=0.0).to(tl.float32)
        b_sum += tl.sum(b_pooled * b_weight, 1)
    b_bias = tl.load(bias + i_row, m_j, other=0.0).to(tl.float32)
    tl.store(logits + o_j, b_sum + b_bias, m_j)

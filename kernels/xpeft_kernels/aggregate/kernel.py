"""aggregate_adapters in Triton: the bank is read once for up to 32 profiles, and nothing but their slots is written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_aggregate
from .launch import tile_profiles

BLOCK_D = 128
BLOCK_N = 32
STAGES = 3
"""Of loads. With four, what ptxas makes of it for sm_90 spills where 32 soft profiles are filled."""


def aggregate_adapters_triton(bank: Tensor, masks: Tensor, slots: Tensor, slot_ids: Tensor, *, split: int) -> None:
    """See `aggregate_adapters`. One launch for all blocks and both masks; a slot's bits do not depend on the others."""
    check_aggregate(bank, masks, slots, slot_ids, split=split)
    blocks, adapters, row = bank.shape
    profiles = slot_ids.numel()
    if not profiles:
        return
    bank, masks = bank.contiguous(), masks.contiguous()
    hard = masks.dtype == torch.uint8
    block_p = tile_profiles(profiles)
    columns = triton.cdiv(split, BLOCK_D) + triton.cdiv(row - split, BLOCK_D)
    # Both in the first axis, as the others end at 65,535; profiles change first, so that columns are read together.
    _aggregate_adapters_kernel[(columns * triton.cdiv(profiles, block_p), blocks)](
        bank,
        masks,
        slots,
        slot_ids,
        profiles,
        adapters,
        split,
        row,
        masks.shape[-1],
        slots.stride(0),
        slots.stride(1),
        HARD=hard,
        EXACT=not hard and bank.dtype != torch.float32 and bank.dtype != masks.dtype,
        BLOCK_P=block_p,
        BLOCK_N=BLOCK_N,
        BLOCK_D=BLOCK_D,
        num_warps=4,
        num_stages=STAGES,
    )


@triton.jit(do_not_specialize=["profiles"])  # type: ignore[untyped-decorator]
def _aggregate_adapters_kernel(  # type: ignore[no-untyped-def]
    bank,  # [L, N, D]
    masks,  # [P, 2, L, W]: W bytes of bits, or W = N weights
    slots,  # [L, S, D']
    slot_ids,  # [P]
    profiles,
    adapters,
    split,
    row,
    mask_width,
    stride_slot_block,
    stride_slot,
    HARD: tl.constexpr,
    EXACT: tl.constexpr,  # soft weights do not fit into the bank's dtype: they are multiplied in two parts
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    tiles_p = tl.cdiv(profiles, BLOCK_P)
    i_p, i_d = tl.program_id(0) % tiles_p, tl.program_id(0) // tiles_p
    i_l, blocks = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    # Columns of mask a's part of a row come first, then those of mask b's; no tile has both.
    tiles_a = tl.cdiv(split, BLOCK_D)
    side = (i_d >= tiles_a).to(tl.int32)
    end = tl.where(side == 0, split, row)
    o_d = tl.where(side == 0, i_d * BLOCK_D, split + (i_d - tiles_a) * BLOCK_D) + tl.arange(0, BLOCK_D)
    m_d = o_d < end
    o_p = i_p * BLOCK_P + tl.arange(0, BLOCK_P)
    m_p = o_p < profiles
    p_mask = masks + (((o_p.to(tl.int64) * 2 + side) * blocks + i_l) * mask_width)[:, None]
    p_bank = bank + i_l * adapters * row
    b_sum = tl.zeros([BLOCK_P, BLOCK_D], tl.float32)
    b_count = tl.zeros([BLOCK_P], tl.int32)
    for start in range(0, adapters, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < adapters
        # [BLOCK_N, BLOCK_D]
        b_bank = tl.load(
            p_bank + o_n.to(tl.int64)[:, None] * row + o_d[None, :], m_n[:, None] & m_d[None, :], other=0.0
        )
        # [BLOCK_P, BLOCK_N]
        m_mask = m_p[:, None] & m_n[None, :]
        if HARD:
            b_byte = tl.load(p_mask + (o_n // 8)[None, :], m_mask, other=0)
            b_bit = (b_byte.to(tl.int32) >> (o_n % 8)[None, :]) & 1
            b_count += tl.sum(b_bit, 1)
            b_sum = tl.dot(b_bit.to(b_bank.dtype), b_bank, b_sum, input_precision="ieee")
        else:
            b_weight = tl.load(p_mask + o_n[None, :], m_mask, other=0.0).to(tl.float32)
            b_high = b_weight.to(b_bank.dtype)
            b_sum = tl.dot(b_high, b_bank, b_sum, input_precision="ieee")
            if EXACT:
                b_low = (b_weight - b_high.to(tl.float32)).to(b_bank.dtype)
                b_sum = tl.dot(b_low, b_bank, b_sum, input_precision="ieee")
    if HARD:
        b_sum = b_sum * (1.0 / tl.maximum(b_count, 1).to(tl.float32))[:, None]
    o_slot = tl.load(slot_ids + o_p, m_p, other=0).to(tl.int64)
    p_slot = slots + i_l * stride_slot_block + (o_slot * stride_slot)[:, None] + o_d[None, :]
    tl.store(p_slot, b_sum.to(slots.dtype.element_ty), m_p[:, None] & m_d[None, :])

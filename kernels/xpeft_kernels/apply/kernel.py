"""apply_adapters in Triton: a tile's rows go through adapter, residual add and LayerNorm in one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..form import LN_EPS, AdapterForm
from ..reference_only import refuse_gradients
from ..tiles import PlacedTiles, Tiles
from .checks import check_apply
from .launch import Launch
from .norm import Norm


def apply_adapters_triton(
    hidden: Tensor,
    slots: Tensor,
    tiles: Tiles | PlacedTiles,
    form: AdapterForm,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """See `apply_adapters`. A row's bits depend on its own values and its slot alone.

    Raises: ValueError also where a gradient is asked for, which only the reference has.
    """
    check_apply(hidden, slots, tiles, form, residual=residual)
    refuse_gradients("apply_adapters", hidden, slots)
    hidden = hidden.contiguous()
    launch = Launch.of(tiles.tokens, form, hidden.element_size())
    pieces = tiles.pieces(launch.rows)
    out = torch.empty_like(hidden)
    _apply_adapters_kernel[(pieces.shape[0],)](
        hidden,
        hidden if residual is None else residual.contiguous(),
        out,
        slots,
        pieces,
        hidden if norm is None else norm.weight,
        hidden if norm is None or norm.bias is None else norm.bias,
        slots.stride(0),
        form.split,
        0.0 if norm is None else norm.eps,
        LN_EPS,
        H=form.hidden,
        R=form.width,
        GELU=form.activation == "gelu",
        LAYER_NORM=form.layer_norm,
        DOWN_BIAS=form.down_bias,
        UP_BIAS=form.up_bias,
        RESIDUAL=residual is not None,
        NORM=norm is not None,
        NORM_BIAS=norm is not None and norm.bias is not None,
        BLOCK_T=launch.rows,
        BLOCK_H=launch.columns,
        BLOCK_R=launch.width,
        num_warps=launch.warps,
        num_stages=launch.stages,
    )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _apply_adapters_kernel(  # type: ignore[no-untyped-def]
    hidden,  # [T, H]
    residual,  # [T, H]
    out,  # [T, H]
    slots,  # [S, D]
    pieces,  # [K, 3] int32: slot, first token, tokens
    norm_weight,  # [H]
    norm_bias,  # [H]
    stride_slot,
    split,
    norm_eps,
    ln_eps,
    H: tl.constexpr,
    R: tl.constexpr,
    GELU: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    DOWN_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    NORM: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    p_piece = pieces + tl.program_id(0) * 3
    tokens = tl.load(p_piece + 2)
    if tokens == 0:
        return
    p_slot = slots + tl.load(p_piece).to(tl.int64) * stride_slot
    o_t = tl.arange(0, BLOCK_T)
    m_t = o_t < tokens
    o_row = (tl.load(p_piece + 1) + o_t).to(tl.int64)[:, None] * H
    b_z = _bottleneck(
        hidden, p_slot, o_row, m_t, split, ln_eps, H, R, GELU, LAYER_NORM, DOWN_BIAS, UP_BIAS, BLOCK_T, BLOCK_H, BLOCK_R
    )
    o_r = tl.arange(0, BLOCK_R)
    m_r = o_r < R

    # y = h + z B̂ + residual; its mean and squared deviations are merged column block by column block
    # (Chan, Golub, LeVeque 1979), and y waits in `out`, in its dtype, for its LayerNorm.
    b_mean = tl.zeros([BLOCK_T], tl.float32)
    b_square = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, H, BLOCK_H):
        o_h = start + tl.arange(0, BLOCK_H)
        m_h = o_h < H
        m_th = m_t[:, None] & m_h[None, :]
        b_up = tl.load(p_slot + split + o_r[:, None] * H + o_h[None, :], m_r[:, None] & m_h[None, :], other=0.0)
        b_y = tl.dot(b_z, b_up, input_precision="ieee")
        b_y += tl.load(hidden + o_row + o_h[None, :], m_th, other=0.0).to(tl.float32)
        if UP_BIAS:
            b_y += tl.load(p_slot + split + R * H + o_h, m_h, other=0.0).to(tl.float32)[None, :]
        if RESIDUAL:
            b_y += tl.load(residual + o_row + o_h[None, :], m_th, other=0.0).to(tl.float32)
        b_out = b_y.to(out.dtype.element_ty)
        tl.store(out + o_row + o_h[None, :], b_out, m_th)
        if NORM:
            b_y = b_out.to(tl.float32)
            columns = tl.minimum(H - start, BLOCK_H).to(tl.float32)
            b_block = tl.sum(b_y, 1) / columns
            b_off = tl.where(m_h[None, :], b_y - b_block[:, None], 0.0)
            b_delta = b_block - b_mean
            b_mean += b_delta * (columns / (start + columns))
            b_square += tl.sum(b_off * b_off, 1) + b_delta * b_delta * (start * columns / (start + columns))
    if NORM:
        tl.debug_barrier()
        b_scale = tl.rsqrt(b_square / H + norm_eps)
        _normalise(out + o_row, m_t, b_mean, b_scale, norm_weight, norm_bias, H, NORM_BIAS, BLOCK_H)


@triton.jit  # type: ignore[untyped-decorator]
def _bottleneck(  # type: ignore[no-untyped-def]
    hidden,
    p_slot,
    o_row,
    m_t,
    split,
    ln_eps,
    H: tl.constexpr,
    R: tl.constexpr,
    GELU: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    DOWN_BIAS: tl.constexpr,
    UP_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """z = act(LN_R(h Â + c)) of a piece, ``[BLOCK_T, BLOCK_R]`` in the dtype of ``hidden``."""
    o_r = tl.arange(0, BLOCK_R)
    m_r = o_r < R
    b_z = tl.zeros([BLOCK_T, BLOCK_R], tl.float32)
    for start in range(0, H, BLOCK_H):
        o_h = start + tl.arange(0, BLOCK_H)
        m_h = o_h < H
        b_h = tl.load(hidden + o_row + o_h[None, :], m_t[:, None] & m_h[None, :], other=0.0)
        b_down = tl.load(p_slot + o_h[:, None] * R + o_r[None, :], m_h[:, None] & m_r[None, :], other=0.0)
        b_z = tl.dot(b_h, b_down, b_z, input_precision="ieee")
    if DOWN_BIAS:
        b_z += tl.load(p_slot + H * R + o_r, m_r, other=0.0).to(tl.float32)[None, :]
    if LAYER_NORM:
        p_affine = p_slot + split + R * H + o_r
        if UP_BIAS:
            p_affine += H
        b_centred = tl.where(m_r[None, :], b_z - (tl.sum(b_z, 1) / R)[:, None], 0.0)
        b_scale = tl.rsqrt(tl.sum(b_centred * b_centred, 1) / R + ln_eps)
        b_weight = tl.load(p_affine, m_r, other=0.0).to(tl.float32)
        b_bias = tl.load(p_affine + R, m_r, other=0.0).to(tl.float32)
        b_z = b_centred * b_scale[:, None] * b_weight[None, :] + b_bias[None, :]
    # Columns beyond R meet rows of B̂ that are loaded as zeros.
    b_z = 0.5 * b_z * (1.0 + tl.erf(b_z * 0.7071067811865476)) if GELU else tl.maximum(b_z, 0.0)
    return b_z.to(hidden.dtype.element_ty)


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    p_rows,
    m_t,
    b_mean,
    b_scale,
    norm_weight,
    norm_bias,
    H: tl.constexpr,
    NORM_BIAS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """LayerNorm of a piece's rows in place, their mean and reciprocal deviation given, ``[BLOCK_T]`` each."""
    for start in range(0, H, BLOCK_H):
        o_h = start + tl.arange(0, BLOCK_H)
        m_h = o_h < H
        m_th = m_t[:, None] & m_h[None, :]
        p_out = p_rows + o_h[None, :]
        b_y = (tl.load(p_out, m_th, other=0.0).to(tl.float32) - b_mean[:, None]) * b_scale[:, None]
        b_y *= tl.load(norm_weight + o_h, m_h, other=0.0).to(tl.float32)[None, :]
        if NORM_BIAS:
            b_y += tl.load(norm_bias + o_h, m_h, other=0.0).to(tl.float32)[None, :]
        tl.store(p_out, b_y.to(p_rows.dtype.element_ty), m_th)

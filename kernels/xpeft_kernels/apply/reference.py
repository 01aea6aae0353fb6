"""The specification of apply_adapters, in PyTorch, and what runs on CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..form import LN_EPS, AdapterForm
from ..tiles import PlacedTiles, Stack, Tiles
from .checks import check_apply
from .norm import Norm


def apply_adapters_ref(
    hidden: Tensor,
    slots: Tensor,
    tiles: Tiles | PlacedTiles,
    form: AdapterForm,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """See `apply_adapters`.

    Neighbouring runs of similar length are stacked (see `Tiles.stacks`), so that a batch of any number of profiles is
    a handful of batched products; one stack after the other, so that what belongs together is still in the cache.
    Differentiable in ``hidden`` and ``slots``; works in place where no gradient is asked for.
    """
    check_apply(hidden, slots, tiles, form, residual=residual)
    if isinstance(tiles, PlacedTiles):
        raise ValueError("the reference needs the runs on the host, in Tiles, not PlacedTiles")
    parts = _SlotParts.of(slots, form)
    stacks = tiles.stacks
    if torch.is_grad_enabled():
        padded = torch.split(tiles.padding.pad(hidden), [each.gather.numel() for each in stacks])
        through = [_adapted(rows, parts, each, form) for rows, each in zip(padded, stacks, strict=True)]
        out = tiles.padding.unpad(torch.cat(through))
    else:
        out = torch.empty_like(hidden)
        for each, rows in zip(stacks, torch.split(out, [each.tokens for each in stacks]), strict=True):
            padded_rows = _adapted(hidden.index_select(0, each.gather), parts, each, form)
            torch.index_select(padded_rows, 0, each.scatter, out=rows)
    if residual is not None:
        out = out + residual if out.requires_grad else out.add_(residual)
    if norm is not None:
        out = functional.layer_norm(out, (form.hidden,), norm.weight, norm.bias, norm.eps)
    return out


class _SlotParts(NamedTuple):
    """Views of slot rows: ``[S, H, R]``, ``[S, R, H]``, and ``[S, 1, ·]`` for what is added or scaled a row."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    affine: Tensor

    @classmethod
    def of(cls, slots: Tensor, form: AdapterForm) -> _SlotParts:
        wide, split, end = form.hidden * form.width, form.split, form.bank_row
        return cls(
            down=torch.unflatten(slots[:, :wide], 1, (form.hidden, form.width)),
            down_bias=slots[:, None, wide:split],
            up=torch.unflatten(slots[:, split : split + wide], 1, (form.width, form.hidden)),
            up_bias=slots[:, None, split + wide : end],
            affine=slots[:, None, end:],
        )


def _adapted(rows: Tensor, parts: _SlotParts, stack: Stack, form: AdapterForm) -> Tensor:
    """h + act(LN_R(h Â + c)) B̂ + d of one stack's padded tokens, ``[K · height, H]``."""
    tokens = rows.view(-1, stack.height, form.hidden)
    z = torch.bmm(tokens, parts.down.index_select(0, stack.slots))
    if form.down_bias:
        z = z + parts.down_bias.index_select(0, stack.slots)
    if form.layer_norm:
        weight, bias = parts.affine.index_select(0, stack.slots).chunk(2, dim=2)
        z = torch.addcmul(bias, functional.layer_norm(z, (form.width,), eps=LN_EPS), weight)
    z = functional.relu(z) if form.activation == "relu" else functional.gelu(z)
    up = parts.up.index_select(0, stack.slots)
    out = torch.baddbmm(tokens, z, up) if torch.is_grad_enabled() else tokens.baddbmm_(z, up)
    if form.up_bias:
        out = out + parts.up_bias.index_select(0, stack.slots)
    return out.view(-1, form.hidden)

"""The specification of apply_adapters, in PyTorch, and what runs on CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..form import LN_EPS, AdapterForm
from ..tiles import PlacedTiles, Stack, Tiles
from .checks import check_apply, check_even
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
        through = [_stacked(rows, parts, each, form) for rows, each in zip(padded, stacks, strict=True)]
        out = tiles.padding.unpad(torch.cat(through))
    else:
        out = torch.empty_like(hidden)
        for each, rows in zip(stacks, torch.split(out, [each.tokens for each in stacks]), strict=True):
            padded_rows = _stacked(hidden.index_select(0, each.gather), parts, each, form)
            torch.index_select(padded_rows, 0, each.scatter, out=rows)
    return _finished(out, residual, norm)


def apply_adapters_even(
    hidden: Tensor,
    slots: Tensor,
    form: AdapterForm,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """`apply_adapters` where every slot has as many tokens, in the order of the slots.

    Nothing of it is laid out on the host, so that it can be captured with its gradients.

    Args:
        hidden: ``[S · n, H]``, n ≥ 1 tokens of each slot.
        slots: ``[S, D]``.
    Returns: ``[S · n, H]``, differentiable in ``hidden`` and ``slots``.
    Raises: ValueError if the shapes do not fit.
    """
    check_even(hidden, slots, form, residual=residual)
    tokens = hidden.view(slots.shape[0], -1, form.hidden)
    out = _adapted(tokens, _SlotParts.of(slots, form), form, lambda part: part, in_place=False)
    return _finished(out.view(-1, form.hidden), residual, norm)


class _SlotParts(NamedTuple):
    """Views of slot rows: ``[S, H, R]``, ``[S, R, H]``, and ``[S, 1, ·]`` for what is added or scaled a row."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    affine: Tensor

    @classmethod
    def of(cls, slots: Tensor, form: AdapterForm) -> _SlotParts:
        wide, left = form.hidden * form.width, slots.shape[1] - form.bank_row
        sizes = [wide, form.split - wide, wide, form.bank_row - form.split - wide, left]
        down, down_bias, up, up_bias, affine = torch.split(slots, sizes, dim=1)
        return cls(
            down=torch.unflatten(down, 1, (form.hidden, form.width)),
            down_bias=down_bias[:, None],
            up=torch.unflatten(up, 1, (form.width, form.hidden)),
            up_bias=up_bias[:, None],
            affine=affine[:, None],
        )


def _stacked(rows: Tensor, parts: _SlotParts, stack: Stack, form: AdapterForm) -> Tensor:
    """One stack's padded tokens, ``[K · height, H]`` in and out."""

    def chosen(part: Tensor) -> Tensor:
        return part.index_select(0, stack.slots)

    tokens = rows.view(-1, stack.height, form.hidden)
    return _adapted(tokens, parts, form, chosen, in_place=not torch.is_grad_enabled()).view(-1, form.hidden)


def _adapted(
    tokens: Tensor, parts: _SlotParts, form: AdapterForm, chosen: Callable[[Tensor], Tensor], *, in_place: bool
) -> Tensor:
    """h + act(LN_R(h Â + c)) B̂ + d, ``[K, height, H]`` in and out. Args: chosen: the K slots' rows of a part."""
    z = torch.bmm(tokens, chosen(parts.down))
    if form.down_bias:
        z = z + chosen(parts.down_bias)
    if form.layer_norm:
        weight, bias = chosen(parts.affine).chunk(2, dim=2)
        z = torch.addcmul(bias, functional.layer_norm(z, (form.width,), eps=LN_EPS), weight)
    z = functional.relu(z) if form.activation == "relu" else functional.gelu(z)
    up = chosen(parts.up)
    out = tokens.baddbmm_(z, up) if in_place else torch.baddbmm(tokens, z, up)
    return out + chosen(parts.up_bias) if form.up_bias else out


def _finished(out: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
    """What follows the adapter in the block."""
    if residual is not None:
        out = out + residual if out.requires_grad else out.add_(residual)
    if norm is not None:
        out = functional.layer_norm(out, out.shape[1:], norm.weight, norm.bias, norm.eps)
    return out

"""The specification of apply_adapters, in PyTorch, and what runs on CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..form import AdapterForm
from ..tiles import PaddedTiles, Tiles
from .norm import Norm

LN_EPS = 1e-5


def apply_adapters_ref(
    hidden: Tensor,
    slots: Tensor,
    tiles: Tiles,
    form: AdapterForm,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
) -> Tensor:
    """See `apply_adapters`.

    Runs of similar length are stacked (see `Tiles.padded`), so that a batch of any number of profiles is a handful
    of batched products. Differentiable in ``hidden`` and ``slots``; works in place where no gradient is asked for.
    """
    if hidden.shape != (tiles.tokens, form.hidden):
        raise ValueError(f"hidden is {tuple(hidden.shape)}, tiles and form say {(tiles.tokens, form.hidden)}")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual is {tuple(residual.shape)}, hidden {tuple(hidden.shape)}")
    if slots.shape[1] != form.slot_row:
        raise ValueError(f"slot rows have {slots.shape[1]} elements, the form needs {form.slot_row}")
    plan = tiles.padded
    tokens = hidden.index_select(0, plan.gather)
    out = _through_adapters(tokens, slots, plan, form).index_select(0, plan.scatter)
    if residual is not None:
        out = out + residual if out.requires_grad else out.add_(residual)
    if norm is not None:
        out = functional.layer_norm(out, (form.hidden,), norm.weight, norm.bias, norm.eps)
    return out


def _through_adapters(tokens: Tensor, slots: Tensor, plan: PaddedTiles, form: AdapterForm) -> Tensor:
    """h + act(LN_R(h Â)) B̂ for padded tokens ``[G, H]``, in place where no gradient is asked for."""
    wide, split, end = form.hidden * form.width, form.split, form.bank_row
    down = slots[:, :wide].index_select(0, plan.slots).view(-1, form.hidden, form.width)
    up = slots[:, split : split + wide].index_select(0, plan.slots).view(-1, form.width, form.hidden)
    z = torch.cat([torch.bmm(_stack(tokens, *each), down[each[1]]).view(-1, form.width) for each in plan.slices])
    if form.down_bias:
        z = z + slots[:, wide:split].index_select(0, plan.row_slots)
    if form.layer_norm:
        weight, bias = slots[:, end:].index_select(0, plan.row_slots).chunk(2, dim=1)
        z = torch.addcmul(bias, functional.layer_norm(z, (form.width,), eps=LN_EPS), weight)
    z = functional.relu(z) if form.activation == "relu" else functional.gelu(z)
    out = _add_up(tokens, z, up, plan)
    return out + slots[:, split + wide : end].index_select(0, plan.row_slots) if form.up_bias else out


def _add_up(tokens: Tensor, z: Tensor, up: Tensor, plan: PaddedTiles) -> Tensor:
    """``tokens`` + z B̂, stack by stack. Args: z: ``[G, R]``; up: ``[K, R, H]``, one a run."""
    if torch.is_grad_enabled():
        sums = [torch.baddbmm(_stack(tokens, *each), _stack(z, *each), up[each[1]]) for each in plan.slices]
        return torch.cat([each.view(-1, tokens.shape[1]) for each in sums])
    for each in plan.slices:
        _stack(tokens, *each).baddbmm_(_stack(z, *each), up[each[1]])
    return tokens


def _stack(values: Tensor, rows: slice, runs: slice) -> Tensor:
    """``[G, X]`` → ``[runs, rows of each, X]``, a view."""
    return values[rows].view(runs.stop - runs.start, -1, values.shape[1])

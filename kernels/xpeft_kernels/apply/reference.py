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
    if slots.shape[1] != form.slot_row:
        raise ValueError(f"slot rows have {slots.shape[1]} elements, the form needs {form.slot_row}")
    plan = tiles.padded
    rows = slots.index_select(0, plan.slots)
    tokens = hidden.index_select(0, plan.gather)
    out = _through_adapters(tokens, rows, plan, form).index_select(0, plan.scatter)
    if residual is not None:
        out = out + residual if out.requires_grad else out.add_(residual)
    if norm is not None:
        out = functional.layer_norm(out, (form.hidden,), norm.weight, norm.bias, norm.eps)
    return out


def _through_adapters(tokens: Tensor, rows: Tensor, plan: PaddedTiles, form: AdapterForm) -> Tensor:
    """h + act(LN_R(h Â)) B̂ for padded tokens, in place where no gradient is asked for.

    Args:
        tokens: ``[G, H]`` in stacks of runs.
        rows: ``[K, D]``, the adapter row of each run.
    """
    wide = form.hidden * form.width
    down = rows[:, :wide].view(-1, form.hidden, form.width)
    up = rows[:, form.split : form.split + wide].view(-1, form.width, form.hidden)
    stacks = [(tokens[rows_], down[runs], up[runs]) for rows_, runs in plan.slices]
    z = torch.cat([torch.bmm(h.view(len(a), -1, form.hidden), a).view(-1, form.width) for h, a, _ in stacks])
    if form.down_bias:
        z = z + rows[:, wide : form.split].index_select(0, plan.owners)
    if form.layer_norm:
        weight, bias = rows[:, form.bank_row :].index_select(0, plan.owners).chunk(2, dim=1)
        z = torch.addcmul(bias, functional.layer_norm(z, (form.width,), eps=LN_EPS), weight)
    z = functional.relu(z) if form.activation == "relu" else functional.gelu(z)
    out = _add_up(tokens, z, [(h, b) for h, _, b in stacks], plan)
    if form.up_bias:
        out = out + rows[:, form.split + wide : form.bank_row].index_select(0, plan.owners)
    return out


def _add_up(tokens: Tensor, z: Tensor, stacks: list[tuple[Tensor, Tensor]], plan: PaddedTiles) -> Tensor:
    """``tokens`` + z B̂, stack by stack. Args: z: ``[G, R]``; stacks: views of ``tokens`` and their B̂ ``[k, R, H]``."""
    width, hidden = z.shape[1], tokens.shape[1]
    grad = torch.is_grad_enabled()
    outs = []
    for (rows_, _), (h, b) in zip(plan.slices, stacks, strict=True):
        z_stack, h_stack = z[rows_].view(len(b), -1, width), h.view(len(b), -1, hidden)
        outs.append(torch.baddbmm(h_stack, z_stack, b) if grad else h_stack.baddbmm_(z_stack, b))
    return torch.cat([out.view(-1, hidden) for out in outs]) if grad else tokens

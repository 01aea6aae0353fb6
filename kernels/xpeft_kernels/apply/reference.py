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
    """``[G, H]`` padded tokens → h + act(LN_R(h Â)) B̂, stack by stack. Args: rows: ``[K, D]``, one a run."""
    stacks = []
    run = token = 0
    for count, height in plan.stacks:
        stack = tokens[token : token + count * height].view(count, height, form.hidden)
        stacks.append(_through_stack(stack, rows[run : run + count], form))
        run, token = run + count, token + count * height
    return torch.cat([stack.view(-1, form.hidden) for stack in stacks]) if torch.is_grad_enabled() else tokens


def _through_stack(tokens: Tensor, rows: Tensor, form: AdapterForm) -> Tensor:
    """``[K, M, H]`` tokens and their ``[K, D]`` rows → ``[K, M, H]``; in place where no gradient is asked for."""
    count, wide = rows.shape[0], form.hidden * form.width
    down = rows[:, :wide].view(count, form.hidden, form.width)
    up = rows[:, form.split : form.split + wide].view(count, form.width, form.hidden)
    z = torch.bmm(tokens, down)
    if form.down_bias:
        z = z + rows[:, None, wide : form.split]
    if form.layer_norm:
        weight, bias = rows[:, None, form.bank_row :].chunk(2, dim=2)
        z = torch.addcmul(bias, functional.layer_norm(z, (form.width,), eps=LN_EPS), weight)
    z = functional.relu(z) if form.activation == "relu" else functional.gelu(z)
    up_bias = rows[:, None, form.split + wide : form.bank_row]
    if torch.is_grad_enabled():
        out = torch.baddbmm(tokens, z, up)
        return out + up_bias if form.up_bias else out
    tokens.baddbmm_(z, up)
    return tokens.add_(up_bias) if form.up_bias else tokens

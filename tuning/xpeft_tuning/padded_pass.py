"""Forward, backward and Adam of one part of a step, without a value that the host would have to wait for."""

from __future__ import annotations

import torch
from torch import Tensor

from xpeft_kernels import AdapterForm, Norm, apply_adapters_even
from xpeft_server.model.pooling import pool_padded

from .objective import mixed_losses, padded_completion_losses
from .profile_stack import Learned
from .static_inputs import StaticInputs
from .train_state import TrainState


class PaddedPass:
    """What a CUDA graph replays: `PackedStep`'s arithmetic on padded rows.

    Args:
        inputs: what it reads.
        losses: ``[P]``, where each place's mean loss goes.
    """

    def __init__(self, state: TrainState, inputs: StaticInputs, losses: Tensor) -> None:
        self._state = state
        self._inputs = inputs
        self._losses = losses

    def __call__(self) -> None:
        state, given = self._state, self._inputs.device
        rows = (self._inputs.shape.places, self._inputs.shape.rows)
        leaves = state.stack.leaves(given["places"])
        each = self._row_losses(leaves)
        loss = (each * given["weight"]).sum()
        if state.own_head:
            loss = loss + state.penalty(leaves, given["penalty"], given["bias_penalty"])
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        state.optimizer.step(given["places"], gradients, given["share"])
        self._losses.index_copy_(0, given["places"], (each.detach() * given["mean"]).view(rows).sum(dim=1))

    def _row_losses(self, leaves: Learned) -> Tensor:
        """``[P' · rows]``."""
        state, given, shape = self._state, self._inputs.device, self._inputs.shape
        slots = state.stack.adapters(leaves, state.bank_parts, given["temperature"], given.get("noise"))
        hidden = state.plm.forward(self._inputs.batch(), EvenAdapters(slots.to(state.plm.dtype), state.stack.form))
        hidden = hidden.view(shape.texts, shape.length, -1)
        if state.vocabulary is not None:
            ids = given["ids"].view(shape.texts, shape.length)
            return padded_completion_losses(
                hidden, ids, given["targets"], given["live"], state.vocabulary, longest=shape.answer
            )
        pooled = pool_padded(hidden, given["live"], state.bank.pooling)
        weight, bias = state.stack.head(given["places"], leaves)
        logits = torch.baddbmm(bias[:, None], pooled.view(shape.places, shape.rows, -1), weight.mT)
        return mixed_losses(logits.flatten(0, 1), given["targets"], given["numbers"], given["are_numbers"] > 0)


class EvenAdapters:
    """A slot a place, as the `Adapters` of a forward in which every place has as many tokens.

    Args: slots: ``[L, P', D']`` rows of the form.
    """

    def __init__(self, slots: Tensor, form: AdapterForm) -> None:
        # Taken apart at once: a gradient of one block's would otherwise be as large as all of them.
        self._slots = slots.unbind(0)
        self._form = form

    def __call__(self, block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
        return apply_adapters_even(hidden, self._slots[block], self._form, residual=residual, norm=norm)

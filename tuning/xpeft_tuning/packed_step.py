"""A step without padding: rows of all trainees end to end, in as many passes as their tokens need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xpeft_server.model.pooling import pool

from .forward import hidden_states
from .objective import completion_losses, label_losses
from .profile_stack import Learned
from .row_batch import Pick, pack_rows, renumbered, within
from .train_state import TrainState
from .trainee import Trainee, TraineeBatch, temperatures


class PackedStep:
    """Cheapest where arithmetic is what takes the time; its shapes come from the host, so no graph repeats it."""

    padding = 0.0
    """Share of padding tokens."""

    def __init__(self, state: TrainState) -> None:
        self._state = state

    def step(self, batches: Sequence[TraineeBatch], losses: Tensor) -> None:
        """One update of each trainee.

        Args: losses: ``[P]``, where each one's mean loss goes.
        """
        state = self._state
        device = state.plm.device
        trainees = [each.trainee for each in batches]
        picks = [Pick(slot, each.trainee.train, each.rows) for slot, each in enumerate(batches)]
        places = torch.tensor([each.place for each in trainees], device=device)
        leaves = state.stack.leaves(places)
        found = torch.zeros(len(picks), device=device)
        # Labels and numbers have losses of their own.
        for kind in dict.fromkeys(pick.texts.targets.dtype for pick in picks):
            alike = [pick for pick in picks if pick.texts.targets.dtype == kind]
            for run in within(alike, state.settings.batch_tokens):
                self._pass(run, batches, places, leaves, found)
        if state.own_head:
            penalties = torch.tensor([each.penalty for each in trainees], device=device)
            torch.autograd.backward(state.penalty(leaves, penalties[:, 0], penalties[:, 1]))
        shares = torch.tensor([1 - each.share_done for each in trainees], device=device)
        state.optimizer.step(places, [each.grad for each in leaves], shares)
        losses[places] = found

    def _pass(
        self, picks: Sequence[Pick], batches: Sequence[TraineeBatch], places: Tensor, leaves: Learned, losses: Tensor
    ) -> None:
        """Forward and backward of some rows; gradients are added to ``leaves``, mean losses to ``losses``."""
        state = self._state
        slots, numbered = renumbered(picks)
        here = torch.tensor(slots, device=places.device)
        part = leaves.at(here)
        batch = pack_rows(state.plm, numbered)
        adapters = self._adapters(part, [batches[slot].trainee for slot in slots])
        hidden = hidden_states(state.plm, batch, adapters, state.stack.form)
        if state.vocabulary is not None:
            each = completion_losses(hidden, batch.packed, batch.targets, state.vocabulary)
        else:
            weight, bias = state.stack.head(places[here], part)
            pooled = pool(hidden, batch.packed, state.bank.pooling)
            logits = torch.einsum("qh,qch->qc", pooled, weight[batch.slots]) + bias[batch.slots]
            each = label_losses(logits, batch.targets)
        mean = torch.tensor([1 / len(batches[slot].rows) for slot in slots], device=places.device)[batch.slots]
        weights = torch.cat([batches[pick.slot].trainee.row_weights[pick.places] for pick in picks])
        torch.autograd.backward((each * mean * weights.to(places.device)[batch.rows]).sum())
        losses.index_add_(0, here[batch.slots], each.detach() * mean)

    def _adapters(self, learned: Learned, trainees: Sequence[Trainee]) -> Tensor:
        """``[L, P', D']``."""
        state = self._state
        noise = torch.stack([each.noise for each in trainees]).to(learned.logits) if state.settings.gumbel else None
        return state.stack.adapters(learned, state.bank_parts, temperatures(trainees, learned.logits.device), noise)

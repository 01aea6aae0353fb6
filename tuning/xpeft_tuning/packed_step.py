"""A step without padding: rows of all trainees end to end, in as many passes as their tokens need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xpeft_server.model.pooling import pool

from .forward import hidden_states
from .objective import completion_losses, label_losses
from .profile_stack import Learned
from .row_batch import Pick, pack_rows, within
from .step_parts import StepParts
from .trainee import Trainee, Turn, temperatures


class PackedStep:
    """Cheapest where arithmetic is what takes the time; its shapes come from the host, so no graph repeats it."""

    padding = 0.0
    """Share of padding tokens."""

    def __init__(self, on: StepParts) -> None:
        self._on = on

    def step(self, turns: Sequence[Turn], losses: Tensor) -> None:
        """One update of each trainee.

        Args: losses: ``[P]``, where each one's mean loss goes.
        """
        on = self._on
        device = on.plm.device
        trainees = [each.trainee for each in turns]
        picks = [Pick(slot, each.trainee.train, each.rows) for slot, each in enumerate(turns)]
        places = torch.tensor([each.place for each in trainees], device=device)
        leaves = on.stack.leaves(places)
        found = torch.zeros(len(picks), device=device)
        # Labels and numbers have losses of their own.
        for kind in dict.fromkeys(pick.texts.targets.dtype for pick in picks):
            alike = [pick for pick in picks if pick.texts.targets.dtype == kind]
            for run in within(alike, on.settings.batch_tokens):
                self._pass(run, turns, places, leaves, found)
        if on.own_head:
            penalties = torch.tensor([each.penalty for each in trainees], device=device)
            torch.autograd.backward(on.penalty(leaves, penalties[:, 0], penalties[:, 1]))
        shares = torch.tensor([1 - each.share_done for each in trainees], device=device)
        on.optimizer.step(places, [each.grad for each in leaves], shares)
        losses[places] = found

    def _pass(
        self, picks: Sequence[Pick], turns: Sequence[Turn], places: Tensor, leaves: Learned, losses: Tensor
    ) -> None:
        """Forward and backward of some rows; gradients are added to ``leaves``, mean losses to ``losses``."""
        on = self._on
        slots = sorted({pick.slot for pick in picks})
        here = torch.tensor(slots, device=places.device)
        part = Learned(*(each.index_select(0, here) for each in leaves))
        batch = pack_rows(on.plm, [pick._replace(slot=slots.index(pick.slot)) for pick in picks])
        adapters = self._adapters(part, [turns[slot].trainee for slot in slots])
        hidden = hidden_states(on.plm, batch, adapters, on.stack.form)
        if on.vocabulary is not None:
            each = completion_losses(hidden, batch.packed, batch.targets, on.vocabulary)
        else:
            weight, bias = on.stack.head(places[here], part)
            pooled = pool(hidden, batch.packed, on.bank.pooling)
            logits = torch.einsum("qh,qch->qc", pooled, weight[batch.slots]) + bias[batch.slots]
            each = label_losses(logits, batch.targets)
        mean = torch.tensor([1 / len(turns[slot].rows) for slot in slots], device=places.device)[batch.slots]
        weights = torch.cat([turns[pick.slot].trainee.row_weights[pick.places] for pick in picks])
        torch.autograd.backward((each * mean * weights.to(places.device)[batch.rows]).sum())
        losses.index_add_(0, here[batch.slots], each.detach() * mean)

    def _adapters(self, learned: Learned, trainees: Sequence[Trainee]) -> Tensor:
        """``[L, P', D']``."""
        on = self._on
        noise = torch.stack([each.noise for each in trainees]).to(learned.logits) if on.settings.gumbel else None
        return on.stack.adapters(learned, on.parts, temperatures(trainees, learned.logits.device), noise)

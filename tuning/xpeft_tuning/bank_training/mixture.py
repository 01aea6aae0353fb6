"""AdaMix: adapters of one task take turns at random in every block, and learn to agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool

from ..bank_parts import BankParts
from ..dataset import Dataset
from ..evaluation import Score, score_logits
from ..forward import hidden_states, seeded
from ..objective import label_losses
from ..row_batch import Pick, pack_rows, within
from .outcome import BankProgress, TrainedBank
from .provenance import provenance
from .settings import BankTrainingSettings
from .trainable_bank import TrainableBank
from .training_loop import train_epochs
from .training_rows import TrainingRows


class MixtureTrainer:
    """Trains a mixture of N adapters a block on one dataset.

    Semantics: each step draws, for every block, an adapter's down-projection and, independently, an adapter's
    up-projection, twice; the loss is the first pass's plus the symmetric divergence of both passes' answers,
    ``(KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)) / 2``; half their squared difference where labels are numbers.
    Source: AdaMix (arXiv 2205.12410), sections 3.1 to 3.3. Its merged adapter, the average of all, is what the
    uniform mask serves.

    Args:
        start: adapters and head to begin with; None for random ones.

    Raises: DatasetInvalid for completions; DataTooSmall if there is nothing to tell apart; BankInvalid.
    """

    def __init__(self, plm: Plm, dataset: Dataset, settings: BankTrainingSettings, start: Bank | None = None) -> None:
        self._plm = plm
        self._settings = settings
        self._rows = TrainingRows.of(plm, {"": dataset})
        self._train, self._held_out = self._rows.train[0], self._rows.held_out[0]
        self._start = start
        self._bank = TrainableBank(plm, self._rows.labels, settings, start)
        self._generator = np.random.Generator(np.random.PCG64(settings.seed))

    def train(self, progress: Callable[[BankProgress], None] = lambda _: None) -> TrainedBank:
        """Once. Raises: TuningSettingsInvalid if the loss is no finite number any more."""
        with seeded(self._plm.device, self._settings.seed):
            score = self._learn(progress)
        text = provenance("mixture", self._plm, self._settings, self._rows, score, self._start)
        return TrainedBank(self._bank.bank(text), score, self._rows.rows, self._rows.skipped, self._rows.cut)

    def _learn(self, progress: Callable[[BankProgress], None]) -> Score | None:
        """All epochs; the score after the last one."""
        epochs, steps = self._settings.epochs, -(-len(self._train) // self._settings.batch_rows)
        return train_epochs(
            self._bank,
            self._settings,
            (np.array_split(self._generator.permutation(len(self._train)), steps) for _ in range(epochs)),
            steps=epochs * steps,
            step=lambda rows, _: self._step(rows),
            score=self._score,
            progress=progress,
        )

    def _step(self, rows: NDArray[np.int64]) -> float:
        """Gradients of one step; its mean loss, without the divergence."""
        draws = 2 if self._settings.consistency else 1
        slots = torch.stack([self._drawn() for _ in range(draws)], dim=1)
        total = 0.0
        picks = [Pick(0, self._train, some) for some in self._train.within(rows, self._settings.batch_tokens // draws)]
        for pick in picks:
            targets = pick.texts.targets[torch.from_numpy(pick.places)].to(slots.device)
            first, *second = self._passes(pick, slots)
            loss = label_losses(first, targets).sum() / len(rows)
            apart = sum((_divergence(first, each).sum() for each in second), start=loss.new_zeros(()))
            whole = loss + self._settings.consistency * apart / len(rows)
            torch.autograd.backward(whole, retain_graph=pick is not picks[-1])
            total += loss.item()
        return total

    def _passes(self, pick: Pick, slots: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[Q, C]`` of the same rows under each of the slots, in one forward."""
        count = slots.shape[1]
        batch = pack_rows(self._plm, [pick._replace(slot=slot) for slot in range(count)])
        hidden = hidden_states(self._plm, batch, slots, self._bank.form, dropout=self._settings.dropout)
        logits = self._bank.head_logits(pool(hidden, batch.packed, self._bank.pooling))
        return logits.new_empty(logits.shape).index_copy(0, batch.rows, logits).chunk(count)

    def _drawn(self) -> Tensor:
        """``[L, D']``: a slot of adapters drawn for every block."""
        blocks, count = self._plm.facts.blocks, self._settings.adapters
        block = torch.arange(blocks)
        down, up = (torch.from_numpy(self._generator.integers(count, size=blocks)) for _ in range(2))
        bank = self._bank.parts
        return self._slot(BankParts(bank.down[block, down], bank.up[block, up]))

    def _slot(self, rows: BankParts) -> Tensor:
        """``[L, D']`` of one row a block, with the identity for an affine."""
        affine = rows.down.new_zeros(rows.down.shape[0], 2 * self._settings.width)
        affine[:, : self._settings.width] = 1
        return torch.cat([*rows, *([affine] if self._bank.form.layer_norm else [])], dim=1)

    @torch.no_grad()
    def _score(self) -> Score | None:
        """Of the merged adapter, on the held-out rows."""
        if not len(self._held_out):
            return None
        bank = self._bank.parts
        merged = self._slot(BankParts(bank.down.mean(dim=1), bank.up.mean(dim=1)))[:, None]
        logits = torch.empty(len(self._held_out), len(self._rows.labels))
        places = self._held_out.by_length()
        for run in within([Pick(0, self._held_out, places)], self._settings.batch_tokens):
            batch = pack_rows(self._plm, run)
            pooled = pool(hidden_states(self._plm, batch, merged, self._bank.form), batch.packed, self._bank.pooling)
            rows = torch.from_numpy(np.concatenate([pick.places for pick in run]))[batch.rows.cpu()]
            logits[rows] = self._bank.head_logits(pooled).cpu()
        return score_logits(logits, self._held_out.targets)


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """``[Q]`` how far two passes' answers are apart."""
    if first.shape[1] == 1:
        return (first - second).square()[:, 0] / 2
    a, b = first.log_softmax(dim=1), second.log_softmax(dim=1)
    forth = functional.kl_div(b, a, reduction="none", log_target=True)
    back = functional.kl_div(a, b, reduction="none", log_target=True)
    return (forth + back).sum(dim=1) / 2

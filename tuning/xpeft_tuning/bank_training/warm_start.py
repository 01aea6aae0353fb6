"""Bank, shared head and the training users' masks learn together; the users are then forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool

from ..dataset import Dataset
from ..evaluation import Score, score_logits
from ..forward import hidden_states, seeded
from ..masks import gumbel_noise
from ..objective import label_losses
from ..profile_stack import Learned, ProfileStack
from ..row_adam import RowAdam
from ..row_batch import Pick, RowBatch, pack_rows, renumbered, within
from ..settings import TuningSettings
from .outcome import BankProgress, TrainedBank
from .provenance import provenance
from .settings import BankTrainingSettings
from .trainable_bank import TrainableBank
from .training_loop import train_epochs
from .training_rows import TrainingRows

_MOST_SCORED = 4000
"""Held-out rows that are scored after an epoch, drawn from all."""
_SUSPECTS = ("lr_norm", "lr_own_head", "own_head_penalty")
"""Settings that may make a training diverge. Not the masks' rate: a hard choice is one however large the logits are."""


class WarmStart:
    """Trains a bank on many users' rows at once.

    Each user has hard masks, an LN affine and what its head has beyond the shared one; a step takes some rows of some
    users, and its gradient goes into theirs and into the bank. Random masks at the start make every adapter learn
    what all need; what tells users apart comes with the masks. How often a user gives each label is the user's own
    from the start, so that the bank does not spend itself on it.
    Source: X-PEFT (arXiv 2401.16137), section 3.3, warm start.

    Args:
        users: datasets of each, all with the same labels in the same order (see `training_rows.with_all_labels`), of
            which those without train rows are left out; or their rows, tokenised.
        start: adapters and shared head to begin with, such as one adapter that all users share, which becomes many;
            None for random ones.

    Raises: DatasetInvalid for completions, or labels that differ; DataTooSmall if there is nothing to tell apart;
        BankInvalid.
    """

    def __init__(
        self,
        plm: Plm,
        users: Mapping[str, Dataset] | TrainingRows,
        settings: BankTrainingSettings,
        start: Bank | None = None,
    ) -> None:
        self._plm = plm
        self._settings = settings
        self._rows = users if isinstance(users, TrainingRows) else TrainingRows.of(plm, users)
        self._train, self._held_out = self._rows.train, self._rows.held_out
        self._start = start
        self._bank = TrainableBank(plm, self._rows.labels, settings, start, others=_SUSPECTS)
        self._generator = np.random.Generator(np.random.PCG64(settings.seed))
        self._noise = torch.Generator().manual_seed(settings.seed)
        self._users = ProfileStack(
            self._bank.bank(""),
            TuningSettings(k=settings.k, own_head=True),
            places=len(self._train),
            classes=len(self._rows.labels),
            device=plm.device,
        )
        for place in range(len(self._train)):
            self._users.begin(place, seed=settings.seed + place)
            if settings.lr_own_head and len(self._rows.labels) > 1:
                bias = _log_odds(self._train[place].targets, len(self._rows.labels))
                self._users.learned.head_bias[place] = bias
        affine = settings.lr_norm if settings.layer_norm else 0.0
        rates = [settings.lr_masks, affine, affine, settings.lr_own_head, settings.lr_own_head]
        self._optimizer = RowAdam(self._users.learned, rates)

    def train(self, progress: Callable[[BankProgress], None] = lambda _: None) -> TrainedBank:
        """Once. Raises: TuningSettingsInvalid if the loss is no finite number any more."""
        with seeded(self._plm.device, self._settings.seed):
            score = self._learn(progress)
        text = provenance("warm start", self._plm, self._settings, self._rows, score, self._start)
        return TrainedBank(self._bank.bank(text), score, self._rows.rows, self._rows.skipped, self._rows.cut)

    def _learn(self, progress: Callable[[BankProgress], None]) -> Score | None:
        """All epochs; the score after the last one."""
        epochs = [list(self._epoch()) for _ in range(self._settings.epochs)]
        return train_epochs(
            self._bank,
            self._settings,
            epochs,
            steps=sum(map(len, epochs)),
            step=self._step,
            score=self.score,
            progress=progress,
        )

    def _epoch(self) -> Iterator[list[Pick]]:
        """Steps that take every train row once: some users each, some rows of each user; ``slot`` is the user."""
        pieces = [(user, piece) for user, texts in enumerate(self._train) for piece in self._pieces(len(texts))]
        order = self._generator.permutation(len(pieces))
        for start in range(0, len(order), self._settings.batch_users):
            step: dict[int, list[NDArray[np.int64]]] = {}
            for place in order[start : start + self._settings.batch_users]:
                user, piece = pieces[place]
                step.setdefault(user, []).append(piece)
            yield [Pick(user, self._train[user], np.concatenate(some)) for user, some in step.items()]

    def _pieces(self, rows: int) -> list[NDArray[np.int64]]:
        count = max(1, round(rows / self._settings.user_rows))
        return list(np.array_split(self._generator.permutation(rows), count))

    def _step(self, picks: Sequence[Pick], share: float) -> float:
        """Update the users and make the bank's gradients. Returns: mean loss of the rows."""
        users = torch.tensor([pick.slot for pick in picks], device=self._plm.device)
        leaves = self._users.leaves(users)
        noise = self._noise_on(leaves.logits)
        rows, total = sum(len(pick.places) for pick in picks), 0.0
        local = [pick._replace(slot=slot) for slot, pick in enumerate(picks)]
        for run in within(local, self._settings.batch_tokens):
            slots, numbered = renumbered(run)
            part = leaves.at(torch.tensor(slots, device=self._plm.device))
            part = part._replace(logits=part.logits + noise[slots])
            batch = pack_rows(self._plm, numbered)
            losses = label_losses(self._logits(batch, part, self._settings.dropout), batch.targets)
            torch.autograd.backward(losses.sum() / rows)
            total += losses.detach().sum().item() / rows
        # A user's parameters get the gradient of the user's own mean loss, whatever else is in the step.
        shares = torch.tensor([len(pick.places) / rows for pick in picks], device=self._plm.device)
        penalties = leaves.head_weight.square().sum(dim=(1, 2)) / 2
        torch.autograd.backward(self._settings.own_head_penalty * shares @ penalties)
        own = [None if each.grad is None else each.grad / shares.view(-1, *[1] * (each.dim() - 1)) for each in leaves]
        self._optimizer.step(users, own, torch.full((len(picks),), share, device=self._plm.device))
        return total

    def _noise_on(self, logits: Tensor) -> Tensor:
        """Gumbel noise for mask logits ``[P', 2, L, N]``, drawn once a step."""
        if not self._settings.gumbel:
            return torch.zeros_like(logits)
        return self._settings.gumbel * gumbel_noise(logits.shape, self._noise).to(logits)

    def _logits(self, batch: RowBatch, part: Learned, dropout: float = 0.0) -> Tensor:
        """``[Q, C]`` of packed rows: the shared head's, and what each user's head adds."""
        slots = self._users.slot_rows(self._users.weights(part.logits), part, self._bank.parts)
        hidden = hidden_states(self._plm, batch, slots, self._bank.form, dropout=dropout)
        pooled = pool(hidden, batch.packed, self._bank.pooling)
        own = torch.einsum("qh,qch->qc", pooled, part.head_weight[batch.slots]) + part.head_bias[batch.slots]
        return self._bank.head_logits(pooled) + own

    @torch.no_grad()
    def score(self) -> Score | None:
        """On held-out rows of the training users, each with its own masks and head."""
        everything = [(user, row) for user, texts in enumerate(self._held_out) for row in range(len(texts))]
        if not everything:
            return None
        generator = np.random.Generator(np.random.PCG64(self._settings.seed))
        drawn = sorted(everything[place] for place in generator.permutation(len(everything))[:_MOST_SCORED])
        logits, targets = [], []
        picks = [
            Pick(user, self._held_out[user], np.array([row for _, row in some]))
            for user, some in groupby(drawn, key=itemgetter(0))
        ]
        for run in within(picks, self._settings.batch_tokens):
            users, numbered = renumbered(run)
            part = self._users.learned.at(torch.tensor(users, device=self._plm.device))
            batch = pack_rows(self._plm, numbered)
            logits.append(self._logits(batch, part).cpu())
            targets.append(batch.targets.cpu())
        return score_logits(torch.cat(logits), torch.cat(targets))


def _log_odds(targets: Tensor, classes: int) -> Tensor:
    """``[C]`` mean-free logarithms of how often each label comes, each counted once more than it does."""
    share = (targets.bincount(minlength=classes) + 1).double().log()
    return (share - share.mean()).float()

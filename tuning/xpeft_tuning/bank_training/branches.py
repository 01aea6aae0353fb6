"""Every adapter goes on alone, from one that all users share, on rows of users of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.plm import Plm

from ..dataset import Dataset
from ..errors import TuningSettingsInvalid
from ..evaluation import Score
from .outcome import BankProgress, TrainedBank
from .provenance import provenance
from .settings import BankTrainingSettings
from .training_rows import TrainingRows
from .warm_start import WarmStart


class Branches:
    """Trains a bank of N adapters in N trainings of one, each over its own part of the users, drawn at random.

    What all users need is there before, in the adapter and the head to start from; a branch adds what its users need
    beyond it, unmixed with what others need. Profiles average branches again by their masks. The head stays as it is,
    so that it fits all of them. Source: Branch-Train-Merge (arXiv 2208.03306), with adapters for whole language models.

    Args:
        datasets: of each user, all with the same labels in the same order (see `training_rows.with_all_labels`).
            Users without train rows are left out; there must be as many others as adapters.
        start: where branches begin: at its adapter, or at its adapters, one after the other, over and over.

    Raises: DatasetInvalid for completions, or labels that differ; DataTooSmall if there is nothing to tell apart;
        TuningSettingsInvalid for more adapters than users; BankInvalid for a start that does not fit, or has no head.
    """

    def __init__(self, plm: Plm, datasets: Mapping[str, Dataset], settings: BankTrainingSettings, start: Bank) -> None:
        self._plm = plm
        self._settings = settings
        self._start = start
        self._rows = TrainingRows.of(plm, datasets)
        users = len(self._rows.train)
        if settings.adapters > users:
            raise TuningSettingsInvalid(
                f"adapters is {settings.adapters}, and {users} users have train rows: a branch needs one at least"
            )
        if settings.head not in start.heads:
            raise BankInvalid(f"the bank to start from has no head {settings.head!r}, which all branches learn with")
        order = np.random.Generator(np.random.PCG64(settings.seed)).permutation(users)
        self._parts: list[list[int]] = [np.sort(part).tolist() for part in np.array_split(order, settings.adapters)]
        self._branch(0)  # all begin alike: what does not fit is refused before the first of them has learned

    def train(self, progress: Callable[[BankProgress], None] = lambda _: None) -> TrainedBank:
        """Once. Raises: TuningSettingsInvalid if a loss is no finite number any more."""
        learned = [self._branch(number).train(self._told(number, progress)).bank for number in range(len(self._parts))]
        score = self._score(_joined(learned, ""))
        text = provenance("branches", self._plm, self._settings, self._rows, score, self._start)
        return TrainedBank(_joined(learned, text), score, self._rows.rows, self._rows.skipped, self._rows.cut)

    def _branch(self, number: int) -> WarmStart:
        seed = (self._settings.seed + number) % 2**63
        settings = replace(self._settings, adapters=1, k=None, lr_head=0.0, lr_masks=0.0, gumbel=0.0, seed=seed)
        start = _adapter(self._start, number % self._start.adapters)
        return WarmStart(self._plm, self._rows.of_users(self._parts[number]), settings, start)

    def _told(self, number: int, progress: Callable[[BankProgress], None]) -> Callable[[BankProgress], None]:
        """A branch counts as an epoch of steps."""
        branches = len(self._parts)

        def tell(branch: BankProgress) -> None:
            step, steps = (branch.epoch - 1) * branch.steps + branch.step, branch.epochs * branch.steps
            progress(BankProgress(number + 1, branches, step, steps, branch.loss, None))

        return tell

    def _score(self, bank: Bank) -> Score | None:
        """Of all branches' average, on the users' held-out rows."""
        return WarmStart(self._plm, self._rows, replace(self._settings, k=bank.adapters), bank).score()


def _adapter(bank: Bank, number: int) -> Bank:
    """A bank of one of the adapters, with all heads."""
    here = slice(number, number + 1)
    changes: dict[str, Any] = {name: tensor[:, here] for name, tensor in bank.adapter_tensors().items()}
    return replace(bank, **changes)


def _joined(banks: Sequence[Bank], text: str) -> Bank:
    """All adapters of banks that differ in nothing else. Args: text: provenance."""
    every = [bank.adapter_tensors() for bank in banks]
    joined: dict[str, Any] = {name: torch.cat([each[name] for each in every], dim=1) for name in every[0]}
    return replace(banks[0], **joined, provenance=text)

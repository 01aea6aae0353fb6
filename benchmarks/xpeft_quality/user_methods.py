"""Ways to serve users that bank training has never seen, each from the user's own train rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.file import read_bank_file, write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_training.branches import Branches
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.bank_training.warm_start import WarmStart
from xpeft_tuning.dataset import Dataset
from xpeft_tuning.evaluation import Evaluator, Score, Scored
from xpeft_tuning.labelled_texts import LabelledTexts
from xpeft_tuning.mask_tuner import Tuned, TuningTask, tune_profiles
from xpeft_tuning.settings import TuningSettings

from .data_sets import UserSet
from .progress import Show


class Kept(NamedTuple):
    """Where banks lie that several methods share, one for each seed and number format of the language model."""

    folder: Path

    def bank(self, name: str, train: Callable[[], Bank]) -> Bank:
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bank_file(train(), path)
        return read_bank_file(path)


class Answers(NamedTuple):
    """Share of all unseen users' test rows that got their label, by method; users and rows behind it."""

    accuracy: dict[str, float]
    users: int
    rows: int


Method = Callable[[Plm, UserSet, int, Kept, Show], Answers]

_PLACES = 16
_HEAD = "shared"
_STEPS = {"critics": (8, 4), "movielens_like": (24, 8)}
"""Users in a step of bank training, and rows of each."""
_LENGTH = {"critics": (3, 0.1), "movielens_like": (2, 0.0)}
"""Epochs of the one adapter, and dropout of all bank training."""
_BRANCHES = ("critics",)
"""Where every adapter of a bank learns from users of its own. Elsewhere all learn together, with masks."""


class _Pace(NamedTuple):
    """Of tuning unseen users' profiles over the trained bank: epochs, and peak learning rates."""

    epochs: int
    lr_masks: float
    lr_norm: float


_TUNING = {"critics": _Pace(3, 0.05, 0.002), "movielens_like": _Pace(5, 0.02, 0.005)}


def global_adapter(plm: Plm, users: UserSet, seed: int, kept: Kept, show: Show) -> Answers:
    """One adapter and one head for everybody, trained on all seen users; nothing is learned of the unseen."""
    bank = _adapter_of_all(plm, users, seed, kept, show)
    everything = np.ones((bank.blocks, 1), bool)
    profile = Profile(bank=bank.fingerprint, mask_a=everything, mask_b=everything, shared_head=_HEAD)
    evaluator = Evaluator(plm, bank, slots=1, classes=0, tokens=4096)
    labels = bank.heads[_HEAD].labels
    right = rows = 0.0
    for dataset in users.unseen.values():
        test = LabelledTexts(plm, [row for row in dataset.examples if row.split == "test"], labels, completions=False)
        score = evaluator.scores([Scored(profile, test)])[0]
        right += _right(score)
        rows += score.rows
    return Answers({"one adapter for all": right / rows}, len(users.unseen), int(rows))


def adapter_and_head(plm: Plm, users: UserSet, seed: int, kept: Kept, show: Show) -> Answers:
    """The same adapter, and a head for each user that starts as the shared one."""
    bank = _adapter_of_all(plm, users, seed, kept, show)
    settings = TuningSettings(lr_masks=0.0, lr_norm=0.0, epochs=1, shared_head=_HEAD, own_head=True, seed=seed)
    return _tuned(plm, bank, users, settings, "one adapter for all, a head each", show)


def random_bank(kind: Literal["hard", "soft"]) -> Method:
    """Masks over a random bank, a head of one's own."""

    def learn(plm: Plm, users: UserSet, seed: int, kept: Kept, show: Show) -> Answers:
        bank = open_bank(f"random:N=100,R=48,seed={seed},std=0.1", plm.facts)
        settings = TuningSettings(kind=kind, mask_spread=0.5 if kind == "hard" else 0.01, epochs=8, seed=seed)
        return _tuned(plm, bank, users, settings, f"random bank N=100, {kind}", show)

    return learn


def trained_bank(kind: Literal["hard", "soft"]) -> Method:
    """Masks over the bank that the seen users made of the one adapter, and a head of one's own that starts as the
    shared one."""

    def learn(plm: Plm, users: UserSet, seed: int, kept: Kept, show: Show) -> Answers:
        start = _adapter_of_all(plm, users, seed, kept, show)
        name = _name(plm, users, "bank", seed)
        bank = kept.bank(name, lambda: _many_adapters(plm, users, seed, start, show))
        pace = _TUNING[users.name]._asdict()
        settings = TuningSettings(kind=kind, **pace, shared_head=_HEAD, own_head=True, seed=seed)
        return _tuned(plm, bank, users, settings, f"trained bank N=100, {kind}", show)

    return learn


USER_METHODS: Mapping[str, Method] = {
    "one adapter for all": global_adapter,
    "one adapter for all, a head each": adapter_and_head,
    "trained bank N=100, hard": trained_bank("hard"),
    "trained bank N=100, soft": trained_bank("soft"),
    "random bank N=100, hard": random_bank("hard"),
    "random bank N=100, soft": random_bank("soft"),
}


def _one_adapter(users: UserSet, seed: int) -> BankTrainingSettings:
    batch_users, user_rows = _STEPS[users.name]
    epochs, dropout = _LENGTH[users.name]
    return BankTrainingSettings(
        adapters=1,
        epochs=epochs,
        dropout=dropout,
        batch_users=batch_users,
        user_rows=user_rows,
        lr_bank=0.001,
        weight_decay=0.0,
        lr_masks=0.0,
        lr_norm=0.0,
        lr_own_head=0.0,
        seed=seed,
    )


def _many_adapters(plm: Plm, users: UserSet, seed: int, start: Bank, show: Show) -> Bank:
    """From the one adapter on: what is common is learned already."""
    settings = replace(_one_adapter(users, seed), adapters=100, epochs=1)
    if users.name in _BRANCHES:
        return Branches(plm, users.seen, settings, start).train(show.bank).bank
    settings = replace(settings, lr_bank=0.0001, lr_masks=0.02, gumbel=1.0)
    return WarmStart(plm, users.seen, settings, start).train(show.bank).bank


def _adapter_of_all(plm: Plm, users: UserSet, seed: int, kept: Kept, show: Show) -> Bank:
    def train() -> Bank:
        return WarmStart(plm, users.seen, _one_adapter(users, seed)).train(show.bank).bank

    return kept.bank(_name(plm, users, "adapter", seed), train)


def _name(plm: Plm, users: UserSet, what: str, seed: int) -> str:
    return f"{users.name}-{what}-{str(plm.dtype).removeprefix('torch.')}-{seed}"


def _tuned(plm: Plm, bank: Bank, users: UserSet, settings: TuningSettings, name: str, show: Show) -> Answers:
    right = majority = rows = 0.0
    for done, tuned in enumerate(_outcomes(plm, bank, users.unseen, settings), start=1):
        show.profiles(done, len(users.unseen))
        held_out = tuned.result.held_out
        assert held_out is not None
        assert tuned.result.majority is not None
        right += _right(held_out)
        majority += tuned.result.majority * held_out.rows
        rows += held_out.rows
    return Answers({name: right / rows, "majority of each user": majority / rows}, len(users.unseen), int(rows))


def _outcomes(plm: Plm, bank: Bank, users: Mapping[str, Dataset], settings: TuningSettings) -> Iterator[Tuned]:
    """Rows of split dev are left out: no method chooses by them."""
    tasks = [
        TuningTask(name, Dataset(tuple(row for row in each.examples if row.split != "dev"), each.labels))
        for name, each in users.items()
    ]
    for outcome in tune_profiles(plm, bank, tasks, settings, places=_PLACES, classes=2):
        if not isinstance(outcome, Tuned):
            raise outcome.reason
        yield outcome


def _right(score: Score) -> float:
    """How many rows got their label."""
    assert score.accuracy is not None
    return score.accuracy * score.rows

"""Ways to learn one task, each from all of its train rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_training.mixture import MixtureTrainer
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.evaluation import Score
from xpeft_tuning.mask_tuner import tune_profile
from xpeft_tuning.settings import TuningSettings

from .data_sets import TaskSet
from .progress import Show


class Learned(NamedTuple):
    """Scores on the measured rows, by method: one training can answer for two."""

    scores: dict[str, Score]
    details: dict[str, object]


Method = Callable[[Plm, TaskSet, int, Show], Learned]

_EPOCHS = {"SST-2": 4, "CoLA": 8, "MRPC": 8, "RTE": 8}
_LR_NORM = 0.1
"""Of LN_R's affine over a random bank: what it starts as is a whisper (chosen on train rows, see tuning/README.md)."""
_TEMPERATURE = {"CoLA": 10.0}
"""Of hard masks' gradient: where they take many steps, 1 lets no adapter come back (chosen on train rows, too)."""


def adapter(plm: Plm, task: TaskSet, seed: int, show: Show) -> Learned:
    """One trained adapter and a head: what a profile would be without a bank."""
    settings = BankTrainingSettings(
        adapters=1, epochs=_EPOCHS[task.name], consistency=0.0, lr_bank=0.001, std_up=0.002, seed=seed, batch_rows=32
    )
    trained = MixtureTrainer(plm, task.dataset, settings).train(show.bank)
    assert trained.held_out is not None
    return Learned({"one adapter": trained.held_out}, {})


def random_bank(adapters: int, kind: Literal["hard", "soft"]) -> Method:
    """Masks over a random bank, with a head of the profile's own."""

    def learn(plm: Plm, task: TaskSet, seed: int, show: Show) -> Learned:
        bank = open_bank(f"random:N={adapters},R=48,seed={seed},std=0.1", plm.facts)
        settings = replace(_settings(task, kind, seed), lr_norm=_LR_NORM)
        tuned = tune_profile(plm, bank, task.dataset, settings, show.profile)
        assert tuned.held_out is not None
        assert tuned.head_alone is not None
        scores = {f"random bank N={adapters}, {kind}": tuned.held_out, "head alone": tuned.head_alone}
        return Learned(scores, {"train_accuracy": tuned.train.accuracy})

    return learn


def trained_bank(kind: Literal["hard", "soft"]) -> Method:
    """Masks over a mixture of eight adapters that was trained on the task itself (AdaMix)."""

    def learn(plm: Plm, task: TaskSet, seed: int, show: Show) -> Learned:
        settings = BankTrainingSettings(adapters=8, epochs=_EPOCHS[task.name], lr_bank=0.001, std_up=0.002, seed=seed)
        trained = MixtureTrainer(plm, task.dataset, settings).train(show.bank)
        tuned = tune_profile(plm, trained.bank, task.dataset, _settings(task, kind, seed), show.profile)
        assert tuned.held_out is not None
        assert trained.held_out is not None
        merged = {"mixture of 8, merged": trained.held_out}
        return Learned({f"trained bank N=8, {kind}": tuned.held_out, **merged}, {})

    return learn


def _settings(task: TaskSet, kind: Literal["hard", "soft"], seed: int) -> TuningSettings:
    """Where the metric is Matthews' correlation, labels weigh the same: it asks for the rare one, too."""
    return TuningSettings(
        kind=kind,
        epochs=_EPOCHS[task.name],
        batch_rows=32,
        mask_spread=0.5 if kind == "hard" else 0.01,
        temperature=_TEMPERATURE.get(task.name, 1.0) if kind == "hard" else 1.0,
        class_weights="balanced" if task.metric == "matthews" else None,
        seed=seed,
    )


TASK_METHODS: dict[str, Method] = {
    "one adapter": adapter,
    **{
        f"random bank N={count}, {kind}": random_bank(count, kind)
        for count in (100, 400, 800)
        for kind in ("hard", "soft")
    },
    "trained bank N=8, hard": trained_bank("hard"),
    "trained bank N=8, soft": trained_bank("soft"),
}

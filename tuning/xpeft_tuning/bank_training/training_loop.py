"""Epochs and steps of a bank's training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ..evaluation import Score
from .outcome import BankProgress
from .settings import BankTrainingSettings
from .trainable_bank import TrainableBank, share_of_rate

Batch = TypeVar("Batch")


def train_epochs(
    bank: TrainableBank,
    settings: BankTrainingSettings,
    epochs: Iterable[Sequence[Batch]],
    *,
    steps: int,
    step: Callable[[Batch, float], float],
    score: Callable[[], Score | None],
    progress: Callable[[BankProgress], None],
) -> Score | None:
    """Train bank and shared head.

    Args:
        epochs: each one's batches; taken when the epoch begins.
        steps: of all epochs.
        step: makes the gradients of a batch, at a share of the peak learning rates; returns its mean loss.
        score: on the held-out rows, after each epoch.
    Returns: the last score.
    Raises: TuningSettingsInvalid if a loss or the bank is not finite any more.
    """
    adam, schedule = bank.optimizer(steps)
    done, last = 0, None
    for epoch, batches in enumerate(epochs, start=1):
        total = 0.0
        for number, batch in enumerate(batches, start=1):
            adam.zero_grad(set_to_none=True)
            total += step(batch, share_of_rate(done / steps))
            bank.check_step(total, epoch, number)
            adam.step()
            schedule.step()
            done += 1
            progress(BankProgress(epoch, settings.epochs, number, len(batches), total / number, last))
        last = score()
        bank.check_epoch(epoch, last)
    return last

"""Progress and result of a bank's training."""

from __future__ import annotations

from typing import NamedTuple

from xpeft_server.model.banks.bank import Bank

from ..evaluation import Score


class BankProgress(NamedTuple):
    """After a step.

    Args:
        loss: mean of the epoch's steps so far.
        score: on the held-out rows, after the last whole epoch; None before, and where there are none.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    score: Score | None


class TrainedBank(NamedTuple):
    """A bank with one shared head.

    Args:
        held_out: score on rows that were not learned from, measured in training (float32 masks and heads); None
            without any.
        rows: learned from in each epoch.
        skipped: users that were left out because they have no train row.
        cut: texts that were longer than the model takes and were cut.
    """

    bank: Bank
    held_out: Score | None
    rows: int
    skipped: int
    cut: int

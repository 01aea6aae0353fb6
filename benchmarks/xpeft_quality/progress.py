"""A bar for whatever trains."""

from __future__ import annotations

from rich.progress import Progress, TaskID

from xpeft_tuning.bank_training.outcome import BankProgress
from xpeft_tuning.mask_tuner import TuningProgress


class Show:
    """Shows steps of one cell's trainings, one after the other."""

    def __init__(self, bar: Progress, title: str) -> None:
        self._bar = bar
        self._title = title
        self._task: TaskID = bar.add_task(title, total=None)

    def bank(self, progress: BankProgress) -> None:
        self._update("bank", progress.epoch, progress.epochs, progress.step, progress.steps, progress.loss)

    def profile(self, progress: TuningProgress) -> None:
        self._update("masks", progress.epoch, progress.epochs, progress.step, progress.steps, progress.loss)

    def profiles(self, done: int, total: int) -> None:
        self._bar.update(self._task, description=f"{self._title}: profiles", completed=done, total=total)

    def _update(self, what: str, epoch: int, epochs: int, step: int, steps: int, loss: float) -> None:
        self._bar.update(
            self._task,
            description=f"{self._title}: {what}, loss {loss:.3f}",
            completed=(epoch - 1) * steps + step,
            total=epochs * steps,
        )

    def end(self) -> None:
        self._bar.remove_task(self._task)

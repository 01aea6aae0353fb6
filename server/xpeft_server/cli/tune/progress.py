"""How far the tuning of many profiles is: a bar on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from xpeft_tuning.mask_tuner import TuningProgress

_SHOWN_SECONDS: Final = 0.1  # at least between two changes of the bar


class BarOfMany:
    """Steps over all profiles, profiles that are done and how many a second, and the time that is left.

    A profile counts as its rows: that is what its steps are in proportion to.

    Args: rows: name → rows, of the profiles that are to be tuned.
    """

    def __init__(self, rows: Mapping[str, int]) -> None:
        self._rows = rows
        self._running: dict[str, float] = {}
        self._ended = 0.0
        self._done = 0
        self._began = self._shown = time.monotonic()
        columns = (
            TextColumn("{task.fields[profiles]} profiles"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} % of steps, {task.fields[rate]:.1f} profiles/s"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), speed_estimate_period=300)
        self._task: TaskID = self._progress.add_task("tune", total=sum(rows.values()), profiles=self._profiles, rate=0)

    @contextmanager
    def shown(self) -> Iterator[None]:
        with self._progress:
            yield
            self._show()

    def step(self, progress: TuningProgress) -> None:
        """After a profile's step."""
        share = ((progress.epoch - 1) * progress.steps + progress.step) / (progress.epochs * progress.steps)
        self._running[progress.name] = share * self._rows[progress.name]
        if time.monotonic() - self._shown >= _SHOWN_SECONDS:
            self._show()

    def end(self, name: str) -> None:
        """After a profile's last step, or instead of its first."""
        self._running.pop(name, None)
        self._ended += self._rows[name]
        self._done += 1

    @property
    def _profiles(self) -> str:
        return f"{self._done}/{len(self._rows)}"

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._progress.update(
            self._task,
            completed=self._ended + sum(self._running.values()),
            profiles=self._profiles,
            rate=self._done / max(self._shown - self._began, 1e-9),
        )

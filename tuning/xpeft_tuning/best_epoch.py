"""Which epoch's profile is kept."""

from __future__ import annotations

from xpeft_profiles import Profile

from .evaluation import Score
from .settings import StopOn


class BestEpoch:
    """The last profile offered, or with ``stop_on`` (early stopping) the best score, of equals the first.

    Args:
        stop_on: ``loss``, ``accuracy`` (equals are told apart by loss) or None.
        patience: epochs without a better one after which tuning stops.
    """

    def __init__(self, stop_on: StopOn | None, patience: int) -> None:
        self._stop_on = stop_on
        self._patience = patience
        self._rank: tuple[float, ...] | None = None
        self._over = False
        self.epoch = 0
        self.profile: Profile | None = None

    def offer(self, epoch: int, profile: Profile, score: Score | None) -> None:
        """Keep the profile if it is better."""
        rank = self._ranked(score)
        if self.profile is None or rank is None or self._rank is None or rank > self._rank:
            self._rank, self.epoch, self.profile = rank, epoch, profile

    def _ranked(self, score: Score | None) -> tuple[float, ...] | None:
        if self._stop_on is None or score is None:
            return None
        if self._stop_on == "loss" or score.accuracy is None:
            return (-score.loss,)
        return (score.accuracy, -score.loss)

    def end(self) -> bool:
        """No later epoch will have a profile. Returns: whether there is one to keep, of the epochs before."""
        self._over = self._stop_on is not None and self.profile is not None
        return self._over

    def should_stop(self, epoch: int) -> bool:
        return self._over or (self._stop_on is not None and epoch - self.epoch >= self._patience)

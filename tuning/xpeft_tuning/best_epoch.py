"""Which epoch's profile is kept."""

from __future__ import annotations

from xpeft_profiles import Profile

from .evaluation import Evaluator, Score
from .labelled_texts import LabelledTexts
from .settings import StopOn


class BestEpoch:
    """The last profile offered, or with ``stop_on`` the best on the watched rows, of equals the first.

    Args:
        stop_on: ``loss``, ``accuracy`` (equals are told apart by loss) or None.
        patience: epochs without a better one after which there is no point in going on.
        watched: dev rows if ``stop_on`` is given, not empty then; else any rows, which are only looked at.
    """

    def __init__(self, stop_on: StopOn | None, patience: int, evaluator: Evaluator, watched: LabelledTexts) -> None:
        self._stop_on = stop_on
        self._patience = patience
        self._evaluator = evaluator
        self._watched = watched
        self._rank: tuple[float, ...] = ()
        self.epoch = 0
        self.profile: Profile | None = None

    def offer(self, epoch: int, profile: Profile) -> Score | None:
        """Keep the profile if it is better; its score on the watched rows, None if there are none."""
        score = self._evaluator.score(profile, self._watched) if len(self._watched) else None
        rank = self._ranked(score)
        if self.profile is None or rank is None or rank > self._rank:
            self._rank, self.epoch, self.profile = rank or (), epoch, profile
        return score

    def _ranked(self, score: Score | None) -> tuple[float, ...] | None:
        if self._stop_on is None or score is None:
            return None
        return (-score.loss,) if self._stop_on == "loss" else (score.accuracy, -score.loss)

    def given_up(self, epoch: int) -> bool:
        return self._stop_on is not None and epoch - self.epoch >= self._patience

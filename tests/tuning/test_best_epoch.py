from __future__ import annotations

from typing import Any, cast

import pytest

from xpeft_profiles import Profile
from xpeft_tuning.best_epoch import BestEpoch
from xpeft_tuning.evaluation import Evaluator, Score
from xpeft_tuning.labelled_texts import LabelledTexts
from xpeft_tuning.settings import StopOn


class Scores:
    """Stands for the evaluator: a profile is its own (accuracy, loss) here."""

    def score(self, profile: Any, texts: Any) -> Score:
        return Score(profile[0], profile[1], len(texts))


def _run(stop_on: StopOn | None, scores: list[tuple[float, float]], watched: list[str]) -> tuple[int, int, list[Any]]:
    """The epoch that is kept, the last that ran, and the scores that were told."""
    best = BestEpoch(stop_on, 2, cast(Evaluator, Scores()), cast(LabelledTexts, watched))
    told = []
    for epoch, score in enumerate(scores):
        told.append(best.offer(epoch, cast(Profile, score)))
        if best.given_up(epoch):
            break
    assert best.profile is cast(Any, scores[best.epoch])
    return best.epoch, epoch, told


SCORES = [(0.5, 0.9), (0.7, 0.5), (0.8, 0.6), (0.8, 0.7), (0.6, 0.8), (0.9, 0.1)]


def test_the_last_epoch_is_kept_unless_told_otherwise() -> None:
    assert _run(None, SCORES, ["row"])[:2] == (5, 5)


@pytest.mark.parametrize(("stop_on", "kept", "last"), [("loss", 1, 3), ("accuracy", 2, 4)])
def test_the_best_epoch_is_kept_and_waited_for_no_longer_than_patience(stop_on: StopOn, kept: int, last: int) -> None:
    assert _run(stop_on, SCORES, ["row"])[:2] == (kept, last)


def test_equal_accuracy_is_told_apart_by_loss() -> None:
    assert _run("accuracy", [(0.8, 0.6), (0.8, 0.5), (0.8, 0.5)], ["row"])[0] == 1


def test_without_rows_to_watch_there_is_no_score() -> None:
    assert _run(None, SCORES, [])[2] == [None] * 6

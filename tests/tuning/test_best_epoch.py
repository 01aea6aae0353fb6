from __future__ import annotations

from typing import Any, cast

import pytest

from xpeft_profiles import Profile
from xpeft_tuning.best_epoch import BestEpoch
from xpeft_tuning.evaluation import Score
from xpeft_tuning.settings import StopOn


def _run(stop_on: StopOn | None, scores: list[tuple[float | None, float]]) -> tuple[int, int]:
    """The epoch that is kept and the last that ran; a profile is its own (accuracy, loss) here."""
    best = BestEpoch(stop_on, 2)
    for epoch, score in enumerate(scores):
        best.offer(epoch, cast(Profile, score), Score(score[1], 9, accuracy=score[0]))
        if best.should_stop(epoch):
            break
    assert best.profile is cast(Any, scores[best.epoch])
    return best.epoch, epoch


SCORES: list[tuple[float | None, float]] = [(0.5, 0.9), (0.7, 0.5), (0.8, 0.6), (0.8, 0.7), (0.6, 0.8), (0.9, 0.1)]


def test_the_last_epoch_is_kept_unless_told_otherwise() -> None:
    assert _run(None, SCORES) == (5, 5)


def test_without_a_score_the_last_epoch_is_kept() -> None:
    best = BestEpoch(None, 1)
    for epoch in range(4):
        best.offer(epoch, cast(Profile, epoch), None)
        assert not best.should_stop(epoch)
    assert (best.epoch, best.profile) == (3, 3)


@pytest.mark.parametrize(("stop_on", "kept", "last"), [("loss", 1, 3), ("accuracy", 2, 4)])
def test_the_best_epoch_is_kept_and_waited_for_no_longer_than_patience(stop_on: StopOn, kept: int, last: int) -> None:
    assert _run(stop_on, SCORES) == (kept, last)


def test_the_start_can_be_the_best() -> None:
    assert _run("loss", [(0.5, 0.1), (0.5, 0.2), (0.5, 0.3), (0.5, 0.0)]) == (0, 2)


def test_equal_accuracy_is_told_apart_by_loss() -> None:
    assert _run("accuracy", [(0.8, 0.6), (0.8, 0.5), (0.8, 0.5)])[0] == 1


def test_where_there_is_no_accuracy_loss_decides() -> None:
    assert _run("loss", [(None, 0.6), (None, 0.5), (None, 0.7)])[0] == 1


@pytest.mark.parametrize(("stop_on", "kept"), [("loss", True), (None, False)])
def test_where_no_later_epoch_has_a_profile_the_best_one_before_is_kept(stop_on: StopOn | None, kept: bool) -> None:
    best = BestEpoch(stop_on, 9)
    assert not best.end()
    best.offer(1, cast(Profile, "first"), Score(0.5, 9, accuracy=0.5))
    assert not best.should_stop(1)
    assert (best.end(), best.should_stop(2)) == (kept, kept)
    assert best.profile == cast(Any, "first")

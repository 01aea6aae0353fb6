"""A method's run on a set, as cells of the table."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from xpeft_server.model.plm import Plm
from xpeft_tuning.evaluation import Score

from .cell import Cell
from .data_sets import TaskSet, UserSet
from .progress import Show
from .task_methods import TASK_METHODS
from .user_methods import USER_METHODS, Kept

METHODS = (*TASK_METHODS, *USER_METHODS)


def methods_for(measured: TaskSet | UserSet) -> tuple[str, ...]:
    """Some of `METHODS`."""
    return tuple(TASK_METHODS if isinstance(measured, TaskSet) else USER_METHODS)


def measure(
    plm: Plm,
    measured: TaskSet | UserSet,
    method: str,
    seed: int,
    *,
    kept: Kept,
    show: Show,
    context: Mapping[str, Any],
) -> list[Cell]:
    """A training may answer for more than one method: each becomes a cell, the method's own among them."""
    began = time.perf_counter()
    if isinstance(measured, TaskSet):
        learned = TASK_METHODS[method](plm, measured, seed, show)
        values = {name: value_of(measured, score) for name, score in learned.scores.items()}
        details: dict[str, object] = {**learned.details, "scores": {n: s._asdict() for n, s in learned.scores.items()}}
    else:
        answers = USER_METHODS[method](plm, measured, seed, kept, show)
        values, details = answers.accuracy, {"users": answers.users, "rows": answers.rows}
    seconds = round(time.perf_counter() - began, 1)
    return [Cell(measured.name, name, seed, value, seconds, details, context) for name, value in values.items()]


def value_of(task: TaskSet, score: Score) -> float:
    """The task's metric. Matthews' correlation is Pearson's of two labels, and 0 where either never changes."""
    if task.metric == "matthews":
        return 0.0 if score.correlation is None else score.correlation
    assert score.accuracy is not None
    return score.accuracy

"""Many small convex regressions, solved together by nonlinear conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

_MAX_STEPS = 400
_STEPS_PER_CHECK = 4
"""Steps between two checks of which regressions have converged, each of which waits for the device."""
_MIN_CURVATURE, _MIN_RATIO, _TINY = 1e-10, 1e-10, 1e-100
_EXPANSION = 4.0

_T = TypeVar("_T")


class Regressions(NamedTuple):
    """U times F regressions: U sets of rows, each under F weightings. All float64.

    Semantics: the minimum over X of ``Σ_q weights_q · loss(X rows_q; targets_q) + Σ_j penalty_j · ‖X_j‖² / 2``, where
    the loss is cross-entropy or, for numbers, half the squared error.

    Args:
        rows: ``[U, Q, R]``, with orthogonal columns, or nearly so.
        column_squares: ``[U, 1, 1, R]``, squared norms of the columns.
        targets: ``[U, 1, C, Q]``, one-hot; or numbers, with C = 1.
        weights: ``[U, F, 1, Q]``, 0 for rows that are left out.
        offsets: ``[U, F, C, Q]``, added to the logits; or with 1 for F.
        penalty: ``[U, 1, 1, R]``.
        norm_weights: ``[U, 1, 1, R]``, of the gradient's columns in its norm.
        tolerance: ``[U, F, 1, 1]``, the gradient's norm at which a regression is solved.
        row_count: ``[U, 1, 1, 1]``, weighted or not.
        label_mask: ``[U, 1, C, 1]``, 0 for labels that a set does not have: their logits are minus infinity, or nearly.
    """

    rows: Tensor
    column_squares: Tensor
    targets: Tensor
    weights: Tensor
    offsets: Tensor
    penalty: Tensor
    norm_weights: Tensor
    tolerance: Tensor
    row_count: Tensor
    label_mask: Tensor


Parts = Callable[[], Iterator[Regressions]]
"""Makes regressions that have some of the rows each, and all else in common."""


class DescentState(NamedTuple):
    """U times F regressions after a step.

    Args:
        solution: ``[U, F, C, R]``, X; logits: ``[U, F, C, Q]``, X rowsᵀ + offsets, where all rows are held at once.
        direction, gradient: ``[U, F, C, R]`` of the last step; square: ``[U, F, 1, 1]``, gradient · P⁻¹ gradient there.
        active: ``[U, F, 1, 1]``, whether the last step moved X.
        expansion: ``[U, F, 1, 1]``, multiple of the safe length that the next step tries first.
    """

    solution: Tensor
    logits: Tensor
    direction: Tensor
    gradient: Tensor
    square: Tensor
    active: Tensor
    expansion: Tensor


class _Point(NamedTuple):
    """Some rows at X: their logits and predictions (probabilities, or the numbers themselves), ``[U, F, C, Q]``."""

    part: Regressions
    logits: Tensor
    predicted: Tensor


class _Line(NamedTuple):
    """The same rows, and by how much their logits change along the direction, ``[U, F, C, Q]``."""

    part: Regressions
    logits: Tensor
    predicted: Tensor
    change: Tensor


@torch.no_grad()
def descend(problem: Regressions, *, numbers: bool) -> tuple[Tensor, Tensor]:
    """Solve each from X = 0 to its tolerance, in at most 400 steps of two matrix products.

    Once solved, a regression is not touched again; sets whose regressions are all solved leave the batch. So no result
    depends on the other regressions beyond rounding.

    Returns: X ``[U, F, C, R]`` and logits ``[U, F, C, Q]`` at the minimum.
    """
    weightings = problem.weights.shape[1]
    logits = problem.offsets.expand(-1, weightings, -1, -1).clone(memory_format=torch.contiguous_format)
    state = _start(problem, logits)
    solution = state.solution.clone()
    places = torch.arange(len(solution), device=solution.device)
    for _ in range(_MAX_STEPS // _STEPS_PER_CHECK):
        for _ in range(_STEPS_PER_CHECK):
            state = _step(problem, state, numbers)
        solution[places], logits[places] = state.solution, state.logits
        left = _unsolved(state.active)
        if not len(left):
            break
        if len(left) < len(places):
            problem, state = (
                Regressions(*(each[left] for each in problem)),
                DescentState(*(each[left] for each in state)),
            )
            places = places[left]
    return solution, logits


@torch.no_grad()
def descend_in_parts(problem: Regressions, parts: Parts, *, numbers: bool) -> Tensor:
    """As `descend`, but no tensor of labels times rows is larger than a part's: in steps of six matrix products.

    Args: problem: without rows; parts: with some each.
    Returns: X ``[U, F, C, R]``.
    """
    state = _start(problem, problem.offsets.new_empty(0))
    for _ in range(_MAX_STEPS // _STEPS_PER_CHECK):
        for _ in range(_STEPS_PER_CHECK):
            state = _step(problem, state, numbers, parts)
        if not len(_unsolved(state.active)):
            break
    return state.solution


def _start(problem: Regressions, logits: Tensor) -> DescentState:
    units, folds, labels = *problem.weights.shape[:2], problem.label_mask.shape[2]
    zero = problem.rows.new_zeros(units, folds, labels, problem.rows.shape[2])
    one = torch.ones_like(problem.tolerance)
    return DescentState(zero, logits, zero, zero, one, one.bool(), one)


def _unsolved(active: Tensor) -> Tensor:
    """Places along U where a regression is still active; the one thing that the host waits for."""
    return active.flatten(1).any(dim=1).nonzero()[:, 0]


def _step(problem: Regressions, state: DescentState, numbers: bool, parts: Parts | None = None) -> DescentState:
    """One step of preconditioned conjugate gradients (Polak and Ribière), restarted where it would lead uphill."""
    points = _repeatable(lambda: _points(problem, state, numbers, parts), held=parts is None)
    gradient, curvature = reduce(_add, (_gradient(each, numbers) for each in points()))
    gradient = problem.penalty * state.solution + gradient
    norm = (problem.norm_weights * gradient).square().sum(dim=(2, 3), keepdim=True).sqrt()
    active = norm > problem.tolerance
    steepest = -_preconditioned(problem, gradient, curvature, numbers)
    square = -_inner(gradient, steepest)
    beta = ((square + _inner(state.gradient, steepest)) / state.square).clamp(min=0)
    direction = steepest + beta * state.direction
    direction = torch.where(_inner(gradient, direction) < 0, direction, steepest)
    lines = _repeatable(
        lambda: (_Line(*each, _times(direction, each.part.rows.mT)) for each in points()), held=parts is None
    )
    slope = _inner(gradient, direction)
    penalty_curvature = _inner(problem.penalty * direction, direction)
    if numbers:
        curvature = reduce(torch.add, (_inner(each.part.weights * each.change, each.change) for each in lines()))
        length, expansion = -slope / (penalty_curvature + curvature).clamp(min=_TINY), state.expansion
    else:
        penalty_slope = _inner(problem.penalty * state.solution, direction)
        length, expansion = _search(lines, state.expansion, slope, penalty_slope, penalty_curvature)
    logits = state.logits
    if parts is None:
        [line] = lines()
        logits = torch.where(active, logits + length * line.change, logits)
    solution = torch.where(active, state.solution + length * direction, state.solution)
    return DescentState(solution, logits, direction, gradient, square, active, expansion)


def _repeatable(make: Callable[[], Iterator[_T]], *, held: bool) -> Callable[[], Iterable[_T]]:
    """What can be iterated over again: held in memory, or made anew each time so that only one item is."""
    if not held:
        return make
    every = list(make())
    return lambda: every


def _points(problem: Regressions, state: DescentState, numbers: bool, parts: Parts | None) -> Iterator[_Point]:
    for part in [problem] if parts is None else parts():
        logits = state.logits if parts is None else part.offsets + _times(state.solution, part.rows.mT)
        yield _Point(part, logits, logits if numbers else logits.softmax(dim=2))


def _gradient(point: _Point, numbers: bool) -> tuple[Tensor, Tensor]:
    """Of some rows: the gradient ``[U, F, C, R]``, and the sum of their losses' curvatures in the logits,
    ``[U, F, C, 1]``."""
    part, predicted = point.part, point.predicted
    curvature = part.weights if numbers else part.weights * predicted * (1 - predicted)
    return _times(part.weights * (predicted - part.targets), part.rows), curvature.sum(dim=3, keepdim=True)


def _add(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return one[0] + other[0], one[1] + other[1]


def _preconditioned(problem: Regressions, gradient: Tensor, curvature: Tensor, numbers: bool) -> Tensor:
    """P⁻¹ gradient, where P is the Hessian if columns were orthogonal and all rows had the mean curvature.

    Then each column's part of it, over the labels, is ``penalty + column_square (diag(v) - v vᵀ / Σ v)``, which like
    the true one ignores a move of all labels together. Here ``v_c`` is the mean of ``p_c (1 - p_c) C / (C - 1)``, which
    is exact where all shares are alike. It is inverted by the Sherman-Morrison formula, for a gradient that sums to
    zero.

    Args: curvature: ``[U, F, C, 1]``, the sum of ``p_c (1 - p_c)`` over the rows; of numbers that of their weights.
    """
    if numbers:
        return gradient / (problem.penalty + curvature / problem.row_count * problem.column_squares)
    labels = problem.label_mask.sum(dim=2, keepdim=True).clamp(min=2)
    curvature = curvature / problem.row_count * (labels / (labels - 1))
    curvature = problem.label_mask * curvature.clamp(min=_MIN_CURVATURE)  # it vanishes where every row is certain
    diagonal = curvature * problem.column_squares
    scale = 1 / (problem.penalty + diagonal).clamp(min=_MIN_RATIO * diagonal.amax(dim=(2, 3), keepdim=True))
    alone, together = scale * gradient, scale * curvature
    return alone - together * (alone.sum(dim=2, keepdim=True) / together.sum(dim=2, keepdim=True))


def _search(
    lines: Callable[[], Iterable[_Line]],
    expansion: Tensor,
    slope: Tensor,
    penalty_slope: Tensor,
    penalty_curvature: Tensor,
) -> tuple[Tensor, Tensor]:
    """Line search: a length at which the objective still falls or is level, and the next step's expansion.

    ``expansion`` times the safe length is tried. Where the objective still falls there, the step is that and the safe
    length from there; else it is the safe length from here. By convexity neither can climb.

    Args: slope: ``[U, F, 1, 1]``, the objective's first derivative along the direction; penalty_slope,
        penalty_curvature: first and second one of the penalty.
    """
    curvature, spread = reduce(_add_and_max, (_curvature_and_spread(each) for each in lines()))
    safe = _safe_length(slope, penalty_curvature + curvature, spread)
    tried = expansion * safe
    slope_there, curvature = reduce(_add, (_slope_and_curvature(each, tried) for each in lines()))
    slope_there = slope_there + penalty_slope + tried * penalty_curvature
    farther = tried + _safe_length(slope_there.clamp(max=0), penalty_curvature + curvature, spread)
    longer = torch.where(slope_there < slope / 2, _EXPANSION, 1) * expansion
    next_expansion = torch.where(slope_there > 0, expansion / _EXPANSION, longer)
    return torch.where(slope_there > 0, safe, farther), next_expansion.clamp(min=1)


def _curvature_and_spread(line: _Line) -> tuple[Tensor, Tensor]:
    """Of some rows, ``[U, F, 1, 1]``: curvature along the direction, and how fast logits move apart at most."""
    change = torch.where(line.part.weights > 0, line.change, 0)
    spread = (change.amax(dim=2, keepdim=True) - change.amin(dim=2, keepdim=True)).amax(dim=3, keepdim=True)
    return _curvature(line.part.weights, line.predicted, line.change), spread


def _add_and_max(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return one[0] + other[0], torch.maximum(one[1], other[1])


def _slope_and_curvature(line: _Line, length: Tensor) -> tuple[Tensor, Tensor]:
    """Of some rows' cross-entropies after a step of this length, ``[U, F, 1, 1]``."""
    predicted = (line.logits + length * line.change).softmax(dim=2)
    slope = _inner(line.part.weights * (predicted - line.part.targets), line.change)
    return slope, _curvature(line.part.weights, predicted, line.change)


def _curvature(weights: Tensor, predicted: Tensor, change: Tensor) -> Tensor:
    """Second derivative ``[U, F, 1, 1]`` of the weighted cross-entropies along the direction."""
    centred = change - (predicted * change).sum(dim=2, keepdim=True)
    return _inner(weights * predicted * centred, centred)


def _safe_length(slope: Tensor, curvature: Tensor, spread: Tensor) -> Tensor:
    """The length of a step that cannot go too far.

    Where logits move at speeds at most M apart (the spread), a cross-entropy's third derivative is at most M times its
    second (self-concordance: Bach, "Self-concordant analysis for logistic regression", 2010). So at t the slope is at
    most φ'(0) + φ''(0) (exp(M t) - 1) / M, which is zero at log(1 + M n) / M, where n is Newton's -φ'(0) / φ''(0).
    """
    newton = -slope / curvature.clamp(min=_TINY)
    far = (spread * newton).clamp(min=_TINY)
    return newton * torch.log1p(far) / far


def _times(left: Tensor, right: Tensor) -> Tensor:
    """``[U, F, C, M]`` times ``[U, M, K]``: ``[U, F, C, K]``."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], right.shape[2])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3), keepdim=True)

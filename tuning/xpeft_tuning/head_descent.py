"""Many small convex regressions descended together, without waiting for the device but now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

_STEPS = 400
_UNWATCHED = 4  # steps between two looks at who is done
_FLAT, _NARROW, _TINY = 1e-10, 1e-10, 1e-100
_FASTER = 4.0

_T = TypeVar("_T")


class Regressions(NamedTuple):
    """U times F regressions: U sets of rows, each under F weightings. All float64.

    Semantics: the minimum over X of ``Σ_q kept_q · loss(X rows_q; targets_q) + Σ_j penalty_j · ‖X_j‖² / 2``, where the
    loss is cross-entropy or, for numbers, half the squared error.

    Args:
        rows: ``[U, Q, R]``, of columns that are at right angles, or nearly so.
        squares: ``[U, 1, 1, R]``, of the columns' norms.
        targets: ``[U, 1, C, Q]``, one-hot; or numbers, with C = 1.
        kept: ``[U, F, 1, Q]`` weights, 0 for rows that are left out.
        offsets: ``[U, F, C, Q]``, added to the logits; or with 1 for F.
        penalty: ``[U, 1, 1, R]``.
        reach: ``[U, 1, 1, R]``, how much a column of the gradient counts in its norm.
        allowed: ``[U, F, 1, 1]``, the norm at which a regression is solved.
        present: ``[U, 1, 1, 1]``, rows that there are, weighted or not.
        labels: ``[U, 1, C, 1]``, 1 for those that there are, 0 for those with logits of minus infinity, or nearly.
    """

    rows: Tensor
    squares: Tensor
    targets: Tensor
    kept: Tensor
    offsets: Tensor
    penalty: Tensor
    reach: Tensor
    allowed: Tensor
    present: Tensor
    labels: Tensor


Parts = Callable[[], Iterator[Regressions]]
"""Makes regressions that have some of the rows each, and all else in common."""


class Descent(NamedTuple):
    """How far U times F regressions have come.

    Args:
        solved: ``[U, F, C, R]``, X; logits: ``[U, F, C, Q]``, X rowsᵀ and what is added to it, if rows are held.
        direction, gradient: ``[U, F, C, R]`` of the last step; square: ``[U, F, 1, 1]``, gradient · P⁻¹ gradient there.
        active: ``[U, F, 1, 1]``, whether the last step moved X.
        haste: ``[U, F, 1, 1]``, how much farther than is safe the next step tries to go.
    """

    solved: Tensor
    logits: Tensor
    direction: Tensor
    gradient: Tensor
    square: Tensor
    active: Tensor
    haste: Tensor


class _Seen(NamedTuple):
    """Some rows at X: their logits and what these say, ``[U, F, C, Q]``."""

    part: Regressions
    logits: Tensor
    means: Tensor


class _Way(NamedTuple):
    """The same rows, and the logits of a direction, ``[U, F, C, Q]``."""

    part: Regressions
    logits: Tensor
    means: Tensor
    towards: Tensor


@torch.no_grad()
def descend(given: Regressions, *, numbers: bool) -> tuple[Tensor, Tensor]:
    """Solve each from X = 0 until its gradient is as small as is allowed, in at most 400 steps of two products.

    A solved one is not touched again, and leaves with the others of its rows, so that none depends on its company
    beyond rounding.

    Returns: X ``[U, F, C, R]`` and logits ``[U, F, C, Q]`` at the minimum.
    """
    logits = given.offsets.expand(-1, given.kept.shape[1], -1, -1).clone(memory_format=torch.contiguous_format)
    here = _start(given, logits)
    solved = here.solved.clone()
    busy = torch.arange(len(solved), device=solved.device)
    for _ in range(_STEPS // _UNWATCHED):
        for _ in range(_UNWATCHED):
            here = _step(given, here, numbers)
        solved[busy], logits[busy] = here.solved, here.logits
        left = _unsolved(here.active)
        if not len(left):
            break
        if len(left) < len(busy):
            given, here = Regressions(*(each[left] for each in given)), Descent(*(each[left] for each in here))
            busy = busy[left]
    return solved, logits


@torch.no_grad()
def descend_in_parts(given: Regressions, parts: Parts, *, numbers: bool) -> Tensor:
    """As `descend`, but with no table of labels times rows that is larger than a part's: in steps of six products.

    Args: given: without rows; parts: with some each.
    Returns: X ``[U, F, C, R]``.
    """
    here = _start(given, given.offsets.new_empty(0))
    for _ in range(_STEPS // _UNWATCHED):
        for _ in range(_UNWATCHED):
            here = _step(given, here, numbers, parts)
        if not len(_unsolved(here.active)):
            break
    return here.solved


def _start(given: Regressions, logits: Tensor) -> Descent:
    units, folds, labels, columns = *given.kept.shape[:2], given.labels.shape[2], given.rows.shape[2]
    nothing, one = given.rows.new_zeros(units, folds, labels, columns), torch.ones_like(given.allowed)
    return Descent(nothing, logits, nothing, nothing, one, one.bool(), one)


def _unsolved(active: Tensor) -> Tensor:
    """Places along U where a regression goes on; the one thing that the host waits for."""
    return active.flatten(1).any(dim=1).nonzero()[:, 0]


def _step(given: Regressions, here: Descent, numbers: bool, parts: Parts | None = None) -> Descent:
    """Of nonlinear conjugate gradients, Polak and Ribière's, restarted where they would climb."""
    seen = _again(lambda: _seen(given, here, numbers, parts), held=parts is None)
    pulls, bend = reduce(_added, (_pulls(*each, numbers) for each in seen()))
    gradient = given.penalty * here.solved + pulls
    active = (given.reach * gradient).square().sum(dim=(2, 3), keepdim=True).sqrt() > given.allowed
    downhill = -_conditioned(given, gradient, bend, numbers)
    square = -_inner(gradient, downhill)
    turned = ((square + _inner(here.gradient, downhill)) / here.square).clamp(min=0)
    direction = downhill + turned * here.direction
    direction = torch.where(_inner(gradient, direction) < 0, direction, downhill)
    ways = _again(lambda: (_Way(*each, _times(direction, each.part.rows.mT)) for each in seen()), held=parts is None)
    slope, pull = _inner(gradient, direction), _inner(given.penalty * direction, direction)
    if numbers:
        curvature = reduce(torch.add, (_inner(each.part.kept * each.towards, each.towards) for each in ways()))
        length, haste = -slope / (pull + curvature).clamp(min=_TINY), here.haste
    else:
        pulled = _inner(given.penalty * here.solved, direction)
        length, haste = _length(ways, here.haste, slope, pull, pulled)
    logits = here.logits
    if parts is None:
        [way] = ways()
        logits = torch.where(active, logits + length * way.towards, logits)
    return Descent(
        torch.where(active, here.solved + length * direction, here.solved),
        logits,
        direction,
        gradient,
        square,
        active,
        haste,
    )


def _again(make: Callable[[], Iterator[_T]], *, held: bool) -> Callable[[], Iterable[_T]]:
    """What can be gone through again: kept, or made anew each time so that only one is there at once."""
    if not held:
        return make
    every = list(make())
    return lambda: every


def _seen(given: Regressions, here: Descent, numbers: bool, parts: Parts | None) -> Iterator[_Seen]:
    for part in [given] if parts is None else parts():
        logits = here.logits if parts is None else part.offsets + _times(here.solved, part.rows.mT)
        yield _Seen(part, logits, logits if numbers else logits.softmax(dim=2))


def _pulls(part: Regressions, logits: Tensor, means: Tensor, numbers: bool) -> tuple[Tensor, Tensor]:
    """Of some rows: the gradient ``[U, F, C, R]``, and the curvature, ``[U, F, C, 1]``."""
    bends = part.kept if numbers else part.kept * means * (1 - means)
    return _times(part.kept * (means - part.targets), part.rows), bends.sum(dim=3, keepdim=True)


def _added(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return one[0] + other[0], one[1] + other[1]


def _conditioned(given: Regressions, gradient: Tensor, bend: Tensor, numbers: bool) -> Tensor:
    """P⁻¹ gradient, where P is the Hessian if columns did not mix and every row were bent as all are on average.

    Then each column's part of it, over the labels, is ``penalty + square (diag(v) - v vᵀ / Σ v)``, which like the true
    one leaves it alone if all labels move together. Here ``v_c`` is the mean of ``p_c (1 - p_c) C / (C - 1)``, which is
    right where all shares are alike. It is inverted as Sherman and Morrison do, for a gradient that sums to zero.

    Args: bend: ``[U, F, C, 1]``, the sum of ``p_c (1 - p_c)`` over the rows; of numbers that of their weights.
    """
    if numbers:
        return gradient / (given.penalty + bend / given.present * given.squares)
    several = given.labels.sum(dim=2, keepdim=True).clamp(min=2)
    bend = bend / given.present * (several / (several - 1))
    bend = given.labels * bend.clamp(min=_FLAT)  # where all is decided nothing is bent
    curved = bend * given.squares
    scale = 1 / (given.penalty + curved).clamp(min=_NARROW * curved.amax(dim=(2, 3), keepdim=True))
    alone, together = scale * gradient, scale * bend
    return alone - together * (alone.sum(dim=2, keepdim=True) / together.sum(dim=2, keepdim=True))


def _length(
    ways: Callable[[], Iterable[_Way]], haste: Tensor, slope: Tensor, pull: Tensor, pulled: Tensor
) -> tuple[Tensor, Tensor]:
    """How far to go in one direction, to where it still leads down or is level, and the haste of the next step.

    A step that is ``haste`` times as long as is safe is tried: if it still leads down there, it is gone, and a safe one
    from there; else the safe one from here. By convexity neither can climb.

    Args: haste: of this step; slope, pull, pulled: ``[U, F, 1, 1]``, first derivative along the direction, and second
        and first one of the penalty.
    """
    curvature, speeds = reduce(_both, (_bent(*each) for each in ways()))
    safe = _safe(slope, pull + curvature, speeds)
    tried = haste * safe
    there, curvature = reduce(_added, (_tried(*each, tried) for each in ways()))
    there = there + pulled + tried * pull
    farther = tried + _safe(there.clamp(max=0), pull + curvature, speeds)
    next_haste = torch.where(there > 0, haste / _FASTER, torch.where(there < slope / 2, _FASTER, 1) * haste)
    return torch.where(there > 0, safe, farther), next_haste.clamp(min=1)


def _bent(part: Regressions, logits: Tensor, means: Tensor, towards: Tensor) -> tuple[Tensor, Tensor]:
    """Of some rows, ``[U, F, 1, 1]``: curvature along the direction, and how fast logits move apart at most."""
    moved = torch.where(part.kept > 0, towards, 0)
    speeds = (moved.amax(dim=2, keepdim=True) - moved.amin(dim=2, keepdim=True)).amax(dim=3, keepdim=True)
    return _curvature(part.kept, means, towards), speeds


def _both(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return one[0] + other[0], torch.maximum(one[1], other[1])


def _tried(part: Regressions, logits: Tensor, means: Tensor, towards: Tensor, tried: Tensor) -> tuple[Tensor, Tensor]:
    """Of some rows, ``[U, F, 1, 1]``: slope and curvature of the cross-entropies where a step would lead."""
    means = (logits + tried * towards).softmax(dim=2)
    return _inner(part.kept * (means - part.targets), towards), _curvature(part.kept, means, towards)


def _curvature(kept: Tensor, means: Tensor, towards: Tensor) -> Tensor:
    """Second derivative ``[U, F, 1, 1]`` of the weighted cross-entropies along ``towards``."""
    away = towards - (means * towards).sum(dim=2, keepdim=True)
    return _inner(kept * means * away, away)


def _safe(slope: Tensor, curvature: Tensor, speeds: Tensor) -> Tensor:
    """The length of a step that cannot go too far.

    Where logits move at speeds at most M apart, a cross-entropy's third derivative is at most M times its second
    (self-concordance: Bach, "Self-concordant analysis for logistic regression", 2010). So at t the slope is at most
    φ'(0) + φ''(0) (exp(M t) - 1) / M, which is zero at log(1 + M n) / M, where n is Newton's -φ'(0) / φ''(0).
    """
    newton = -slope / curvature.clamp(min=_TINY)
    far = (speeds * newton).clamp(min=_TINY)
    return newton * torch.log1p(far) / far


def _times(left: Tensor, right: Tensor) -> Tensor:
    """``[U, F, C, M]`` times ``[U, M, K]``: ``[U, F, C, K]``."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], right.shape[2])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(2, 3), keepdim=True)

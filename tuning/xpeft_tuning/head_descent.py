"""Many small convex regressions descended together, without waiting for the device but now and then."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 400
_UNWATCHED = 4  # steps between two looks at who is done
_FLAT, _NARROW, _TINY = 1e-10, 1e-10, 1e-100
_FASTER = 4.0


class Regressions(NamedTuple):
    """U times F regressions: U sets of rows, each under F weightings. All float64.

    Semantics: the minimum over X of ``Σ_q kept_q · loss(X rows_q; targets_q) + Σ_j penalty_j · ‖X_j‖² / 2``, where the
    loss is cross-entropy or, for numbers, half the squared error.

    Args:
        rows: ``[U, Q, R]``, of columns that are at right angles, or nearly so.
        squares: ``[U, 1, 1, R]``, of the columns' norms.
        targets: ``[U, 1, C, Q]``, one-hot; or numbers, with C = 1.
        kept: ``[U, F, 1, Q]`` weights, 0 for rows that are left out.
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
    penalty: Tensor
    reach: Tensor
    allowed: Tensor
    present: Tensor
    labels: Tensor


class Descent(NamedTuple):
    """How far U times F regressions have come.

    Args:
        solved: ``[U, F, C, R]``, X; logits: ``[U, F, C, Q]``, X rowsᵀ and what is added to it.
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


@torch.no_grad()
def descend(given: Regressions, offsets: Tensor, *, numbers: bool) -> tuple[Tensor, Tensor]:
    """Solve each from X = 0 until its gradient is as small as is allowed, in at most 400 steps of two products.

    A solved one is not touched again, and leaves with the others of its rows, so that none depends on its company
    beyond rounding.

    Args: offsets: ``[U, F, C, Q]``, added to the logits.
    Returns: X ``[U, F, C, R]`` and logits ``[U, F, C, Q]`` at the minimum.
    """
    solved, logits = offsets.new_zeros(*offsets.shape[:3], given.rows.shape[2]), offsets.clone()
    nothing, one = torch.zeros_like(solved), torch.ones_like(given.allowed)
    here = Descent(solved, logits, nothing, nothing, one, one.bool(), one)
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


def _unsolved(active: Tensor) -> Tensor:
    """Places along U where a regression goes on; the one thing that the host waits for."""
    return active.flatten(1).any(dim=1).nonzero()[:, 0]


def _step(given: Regressions, here: Descent, numbers: bool) -> Descent:
    """Of nonlinear conjugate gradients, Polak and Ribière's, restarted where they would climb."""
    means = here.logits if numbers else here.logits.softmax(dim=2)
    gradient = given.penalty * here.solved + _times(given.kept * (means - given.targets), given.rows)
    active = (given.reach * gradient).square().sum(dim=(2, 3), keepdim=True).sqrt() > given.allowed
    downhill = -_conditioned(given, gradient, means, numbers)
    square = -_inner(gradient, downhill)
    turned = ((square + _inner(here.gradient, downhill)) / here.square).clamp(min=0)
    direction = downhill + turned * here.direction
    direction = torch.where(_inner(gradient, direction) < 0, direction, downhill)
    towards = _times(direction, given.rows.mT)
    slope, pull = _inner(gradient, direction), _inner(given.penalty * direction, direction)
    length, haste = -slope / (pull + _inner(given.kept * towards, towards)).clamp(min=_TINY), here.haste
    if not numbers:
        pulled = _inner(given.penalty * here.solved, direction)
        length, haste = _length(given, here, means, towards, slope, pull, pulled)
    return Descent(
        torch.where(active, here.solved + length * direction, here.solved),
        torch.where(active, here.logits + length * towards, here.logits),
        direction,
        gradient,
        square,
        active,
        haste,
    )


def _conditioned(given: Regressions, gradient: Tensor, means: Tensor, numbers: bool) -> Tensor:
    """P⁻¹ gradient, where P is the Hessian if columns did not mix and every row were bent as all are on average.

    Then each column's part of it, over the labels, is ``penalty + square (diag(v) - v vᵀ / Σ v)``, which like the true
    one leaves it alone if all labels move together. Here ``v_c`` is the mean of ``p_c (1 - p_c) C / (C - 1)``, which is
    right where all shares are alike. It is inverted as Sherman and Morrison do, for a gradient that sums to zero.
    """
    if numbers:
        bend = given.kept.sum(dim=3, keepdim=True) / given.present
        return gradient / (given.penalty + bend * given.squares)
    several = given.labels.sum(dim=2, keepdim=True).clamp(min=2)
    bend = (given.kept * means * (1 - means)).sum(dim=3, keepdim=True) / given.present * (several / (several - 1))
    bend = given.labels * bend.clamp(min=_FLAT)  # where all is decided nothing is bent
    curved = bend * given.squares
    scale = 1 / (given.penalty + curved).clamp(min=_NARROW * curved.amax(dim=(2, 3), keepdim=True))
    alone, together = scale * gradient, scale * bend
    return alone - together * (alone.sum(dim=2, keepdim=True) / together.sum(dim=2, keepdim=True))


def _length(
    given: Regressions, here: Descent, means: Tensor, towards: Tensor, slope: Tensor, pull: Tensor, pulled: Tensor
) -> tuple[Tensor, Tensor]:
    """How far to go in one direction, to where it still leads down or is level, and the haste of the next step.

    A step that is ``haste`` times as long as is safe is tried: if it still leads down there, it is gone, and a safe one
    from there; else the safe one from here. By convexity neither can climb.

    Args: towards: ``[U, F, C, Q]``, the direction's logits; slope, pull, pulled: ``[U, F, 1, 1]``, first derivative
        along the direction, and second and first one of the penalty.
    """
    moved = torch.where(given.kept > 0, towards, 0)
    speeds = (moved.amax(dim=2, keepdim=True) - moved.amin(dim=2, keepdim=True)).amax(dim=3, keepdim=True)
    safe = _safe(slope, pull + _curvature(given.kept, means, towards), speeds)
    tried = here.haste * safe
    means = (here.logits + tried * towards).softmax(dim=2)
    there = _inner(given.kept * (means - given.targets), towards) + pulled + tried * pull
    farther = tried + _safe(there.clamp(max=0), pull + _curvature(given.kept, means, towards), speeds)
    haste = torch.where(there > 0, here.haste / _FASTER, torch.where(there < slope / 2, _FASTER, 1) * here.haste)
    return torch.where(there > 0, safe, farther), haste.clamp(min=1)


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

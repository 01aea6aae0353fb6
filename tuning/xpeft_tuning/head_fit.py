"""Heads on fixed features: where profiles' own heads start, and what masks have to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .head_descent import Regressions, descend, descend_in_parts
from .linear_head import LinearHead
from .rotated_rows import RotatedRows

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
_DESCENDING = sorted(PENALTIES, reverse=True)
FEWEST_ROWS = 10
MOST_LOGITS = 2_000_000
LIKELY_SHIFT = 0.5
"""Standard deviation, in logits, of what tells a user's head from one that many users share: measured on critics
(benchmarks/results/unseen-critics-cpu-bfloat16.txt)."""
_PRIOR_STD = 0.7  # of the penalty's log10
_FOLDS = 5
_MOST_ELEMENTS = 2**21  # of the largest tensor
_PART_ELEMENTS = 2**20  # the same where rows come in parts
_SHORTEST = 1e-3  # length of features that counts as one


@torch.no_grad()
def fit_linear_heads(given: Sequence[RotatedRows], *, penalties: Sequence[float]) -> list[LinearHead]:
    """Multinomial logistic or linear regressions, solved to convergence: no learning rate, no randomness.

    Semantics, of each profile: the minimum over W, b of ``mean(weights · loss(features Wᵀ + b)) + penalty / Q · ‖W -
    W₀‖² / 2``, where W₀, b₀ is the head that it is drawn to, and the loss is cross-entropy or, for targets that are
    numbers, half the squared error; a penalty of 1 is the usual C = 1. Of a bias that is drawn, too, ``(b - b₀)² /
    mean ‖x‖²`` joins the square. From W₀, b₀, in float64.

    Args: penalties: one for each profile, in the order in which they were given to `rotate`, as are the results.
    """
    heads: dict[int, LinearHead] = {}
    for group in given:
        weights = group.weights[:, None]
        strengths = _vector([penalties[place] for place in group.places], weights)
        found = []
        for some in _unit_slices(len(group.places), group, weightings=1):
            units = torch.arange(some.start, some.stop, device=weights.device)
            found.append(_solved(group, units, weights, strengths[some])[:, 0])
        heads.update(_heads(group, torch.cat(found)))
    return [heads[place] for place in range(len(heads))]


def _heads(group: RotatedRows, solution: Tensor) -> Iterator[tuple[int, LinearHead]]:
    """By place, of solutions ``[P, C, R]``."""
    away = torch.bmm(solution, group.basis)
    shift = torch.bmm(solution, group.constant[..., None]) - torch.bmm(away, group.mean[..., None])
    bias = group.bias + shift[..., 0]
    weight = torch.where(group.finite[:, None, None], group.weight + away, torch.nan).float()
    for number, (place, classes) in enumerate(zip(group.places, group.classes, strict=True)):
        yield place, LinearHead(weight[number, :classes].contiguous(), bias[number, :classes].float())


def bias_penalties(given: Sequence[RotatedRows], penalties: Sequence[float]) -> list[float]:
    """Of ``(b - b₀)² / 2``, where ``penalties`` are those of ``‖W - W₀‖² / 2``: 0 for biases that nothing draws."""
    found = [0.0] * len(penalties)
    for group in given:
        if group.draws_bias:
            for place, square in zip(group.places, group.mean_square.tolist(), strict=True):
                found[place] = penalties[place] / square if square else 0.0
    return found


@torch.no_grad()
def choose_penalties(
    given: Sequence[RotatedRows], *, seeds: Sequence[int], likely_shift: float | None = None
) -> list[float]:
    """The ones of `PENALTIES` with the least loss in cross-validation over a profile's rows, of equals the largest.

    It is the likely one, or 1, for fewer than `FEWEST_ROWS`, which cannot tell, and for more than `MOST_LOGITS` (labels
    times rows), where forty-five fits take too long: a minute and a half there
    (benchmarks/results/tune-time-cpu.txt).

    Args:
        seeds: of each profile's folds, in the order in which they were given to `rotate`, as are the results.
        likely_shift: see `LIKELY_SHIFT`; nothing is known of heads that give numbers. A penalty p stands for shifts of
            ``√(mean ‖x‖² / p)``, and for as much by a bias that is drawn, too. The prior of log10 p is normal about the
            one for the likely shift; its negative logarithm joins the losses, as tens of rows alone choose badly.
    """
    chosen: dict[int, float] = {}
    for group in given:
        shift = None if group.numbers else likely_shift
        prior = _negative_log_prior(group, shift)
        default = [1.0] * len(group.places) if shift is None else _best(prior)
        chosen |= dict(zip(group.places, default, strict=True))
        sizes = enumerate(zip(group.counts, group.classes, strict=True))
        tried = [
            number for number, (count, classes) in sizes if count >= FEWEST_ROWS and classes * count <= MOST_LOGITS
        ]
        if tried:
            folds = _folds(group, [seeds[place] for place in group.places])
            profiles = torch.tensor(tried, device=folds.device)
            best = _best(_validation_losses(group, profiles, folds) + prior[profiles])
            chosen |= {group.places[number]: penalty for number, penalty in zip(tried, best, strict=True)}
    return [chosen[place] for place in range(len(chosen))]


def _best(losses: Tensor) -> list[float]:
    """The penalty with the least of each row of ``[P', 9]``, the first of equals."""
    return [_DESCENDING[each.index(min(each))] for each in losses.tolist()]


def _negative_log_prior(group: RotatedRows, shift: float | None) -> Tensor:
    """``[P, 9]`` of each penalty, in nats, up to a constant; zero where nothing is known."""
    penalties = _vector(_DESCENDING, group.mean)
    if shift is None:
        return penalties.new_zeros(len(group.places), len(penalties))
    likely = (group.mean_square / shift**2)[:, None]
    return ((penalties / likely).log10() / _PRIOR_STD).square() / 2


def _folds(group: RotatedRows, seeds: Sequence[int]) -> Tensor:
    """``[P, F, Q]``, 1 where a fold validates on a row: each row is in one of them."""
    folds = np.zeros((len(seeds), _FOLDS, group.rows.shape[1]))
    for number, (seed, count) in enumerate(zip(seeds, group.counts, strict=True)):
        order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
        folds[number, np.arange(count) % _FOLDS, order] = 1
    return torch.from_numpy(folds).to(group.rows.device)


def _validation_losses(group: RotatedRows, profiles: Tensor, folds: Tensor) -> Tensor:
    """``[P', 9]`` of some profiles under each penalty, the largest first. Args: profiles: ``[P']``."""
    units = profiles[:, None].expand(-1, len(_DESCENDING)).flatten()
    penalties = _vector(_DESCENDING, folds).repeat(len(profiles))
    weights = group.weights[:, None]
    train = weights * (1 - folds)
    validation = weights * folds
    if not group.numbers and not group.draws_bias:
        validation = validation * _is_label_seen(group, train)
    found = []
    for some in _unit_slices(len(units), group, weightings=_FOLDS):
        losses = [
            _fold_losses(group, units[some], train[:, each], validation[:, each], penalties[some])
            for each in _fold_slices(group)
        ]
        found.append(torch.cat(losses, dim=1).sum(dim=(1, 2)))
    return torch.cat(found).view(len(profiles), len(_DESCENDING))


def _fold_losses(group: RotatedRows, units: Tensor, train: Tensor, validation: Tensor, penalties: Tensor) -> Tensor:
    """``[U, F, Q]``, weighted losses of the validation rows under heads that are fitted to the train rows.

    Args: train, validation: ``[P, F, Q]`` weights.
    """
    problem = _regressions(group, units, train, penalties, tolerance=1e-4)
    _, logits = descend(problem, numbers=group.numbers)
    if group.numbers:
        losses = (logits - problem.targets)[:, :, 0].square() / 2
    else:
        losses = logits.logsumexp(dim=2) - (problem.targets * logits).sum(dim=2)
    return losses * validation[units]


def _is_label_seen(group: RotatedRows, train: Tensor) -> Tensor:
    """``[P, F, Q]``, 1 where a fold trains on a row of the same label. The free bias of a label without a train row
    falls until the solver stops, and that is all that such a row's loss would tell."""
    targets = group.targets()
    seen = torch.einsum("pfq,pcq->pfc", train, targets) > 0
    return torch.einsum("pfc,pcq->pfq", seen.to(train), targets)


def _vector(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device)


def _unit_slices(units: int, group: RotatedRows, *, weightings: int) -> Iterator[slice]:
    """Of so many copies of a group's rows, as many as are small enough together."""
    width = max(group.rows.shape[2], weightings * group.bias.shape[1])
    return _slices(units, _MOST_ELEMENTS // (width * group.rows.shape[1]))


def _fold_slices(group: RotatedRows) -> Iterator[slice]:
    """As many folds of one copy as are small enough together."""
    return _slices(_FOLDS, _MOST_ELEMENTS // (group.bias.shape[1] * group.rows.shape[1]))


def _slices(count: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + max(1, most), count)) for start in range(0, count, max(1, most)))


def _solved(group: RotatedRows, units: Tensor, weights: Tensor, penalties: Tensor) -> Tensor:
    """``[U, F, C, R]``; where labels times rows of one profile are too many to hold, its rows go in parts."""
    rows, classes = group.rows.shape[1], group.bias.shape[1]
    in_parts = rows * classes > _MOST_ELEMENTS
    problem = _regressions(group, units, weights, penalties, tolerance=1e-7, some=slice(0 if in_parts else None))
    if not in_parts:
        return descend(problem, numbers=group.numbers)[0]
    parts = [*_slices(rows, _PART_ELEMENTS // classes)]
    return descend_in_parts(
        problem,
        lambda: (problem._replace(**_row_tensors(group, units, weights, each)) for each in parts),
        numbers=group.numbers,
    )


def _regressions(
    group: RotatedRows,
    units: Tensor,
    weights: Tensor,
    penalties: Tensor,
    *,
    tolerance: float,
    some: slice = slice(None),
) -> Regressions:
    """U profiles of a group, each under a penalty of its own and F weightings of its rows.

    Args: units: ``[U]`` places in the group; weights: ``[P, F, Q]``; penalties: ``[U]``;
        tolerance: of the largest element of the mean loss's gradient in W and b; some: of the rows.
    """
    rows = group.rows[units]
    penalty = penalties[:, None].repeat(1, rows.shape[2])
    penalty[:, 0] = 0
    # A gradient in W is that in V, which is no larger in any norm, and x̄ times that in the bias.
    norm_weights = torch.full_like(penalty, 2**0.5)
    norm_weights[:, 0] *= group.mean[units].abs().amax(dim=1).clamp(min=1)
    if group.draws_bias:
        # That in V has the one in the bias times s.
        norm_weights *= group.mean_square[units, None].rsqrt().clamp(1, 1 / _SHORTEST)
    counts, classes = _vector(group.counts, rows)[units], _vector(group.classes, rows)[units]
    label_mask = torch.arange(group.bias.shape[1], device=rows.device) < classes[:, None]
    return Regressions(
        **_row_tensors(group, units, weights, some),
        column_squares=rows.square().sum(dim=1)[:, None, None],
        penalty=penalty[:, None, None],
        norm_weights=norm_weights[:, None, None],
        tolerance=tolerance * (weights[units] > 0).sum(dim=2)[..., None, None].to(rows),
        row_count=counts[:, None, None, None],
        label_mask=label_mask.to(rows)[:, None, :, None],
    )


def _row_tensors(group: RotatedRows, units: Tensor, weights: Tensor, some: slice) -> dict[str, Tensor]:
    """Those of `Regressions` that have a place for each row, of some of the rows."""
    return {
        "rows": group.rows[units, some],
        "targets": group.targets(some)[units, None],
        "weights": weights[units, :, None, some],
        "offsets": group.offsets(some)[units, None],
    }

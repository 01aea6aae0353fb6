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
FEWEST = 10
MOST = 2_000_000
LIKELY_SHIFT = 0.5
"""Standard deviation, in logits, of what tells a user's head from one that many users share: measured on critics
(benchmarks/results/unseen-critics-cpu-bfloat16.txt)."""
_DOUBT = 0.7  # of that, in powers of ten of the penalty
_FOLDS = 5
_NUMBERS = 2**21  # at once, of the largest tensor
_PART = 2**20  # the same where rows come in parts
_SHORTEST = 1e-3  # length of features that counts as one


@torch.no_grad()
def fit_linear_heads(given: Sequence[RotatedRows], *, penalties: Sequence[float]) -> list[LinearHead]:
    """Multinomial logistic or linear regressions, solved to the end: no learning rate, no randomness.

    Semantics, of each profile: the minimum over W, b of ``mean(weights · loss(features Wᵀ + b)) + penalty / Q · ‖W -
    W₀‖² / 2``, where W₀, b₀ is the head that it is drawn to, and the loss is cross-entropy or, for targets that are
    numbers, half the squared error; a penalty of 1 is the usual C = 1. Of a bias that is drawn, too, ``(b - b₀)² /
    mean ‖x‖²`` joins the square. From W₀, b₀, in float64.

    Args: penalties: one for each profile, in the order in which they were given to `rotate`, as are the results.
    """
    heads: dict[int, LinearHead] = {}
    for group in given:
        kept = group.weights[:, None]
        strengths = _column([penalties[place] for place in group.places], kept)
        found = []
        for part in _parts(len(group.places), group, weightings=1):
            own = torch.arange(part.start, part.stop, device=kept.device)
            found.append(_fit(group, own, kept, strengths[part])[:, 0])
        heads.update(_heads(group, torch.cat(found)))
    return [heads[place] for place in range(len(heads))]


def _heads(group: RotatedRows, solved: Tensor) -> Iterator[tuple[int, LinearHead]]:
    """By place, of solutions ``[P, C, R]``."""
    away = torch.bmm(solved, group.basis)
    shift = torch.bmm(solved, group.constant[..., None]) - torch.bmm(away, group.mean[..., None])
    bias = group.bias + shift[..., 0]
    weight = torch.where(group.sound[:, None, None], group.weight + away, torch.nan).float()
    for number, (place, classes) in enumerate(zip(group.places, group.classes, strict=True)):
        yield place, LinearHead(weight[number, :classes].contiguous(), bias[number, :classes].float())


def bias_penalties(given: Sequence[RotatedRows], penalties: Sequence[float]) -> list[float]:
    """Of ``(b - b₀)² / 2``, where ``penalties`` are those of ``‖W - W₀‖² / 2``: 0 for biases that nothing draws."""
    found = [0.0] * len(penalties)
    for group in given:
        if group.draws_bias:
            for place, square in zip(group.places, group.square.tolist(), strict=True):
                found[place] = penalties[place] / square if square else 0.0
    return found


@torch.no_grad()
def choose_penalties(
    given: Sequence[RotatedRows], *, seeds: Sequence[int], likely_shift: float | None = None
) -> list[float]:
    """The ones of `PENALTIES` with the least loss in cross-validation over a profile's rows, of equals the largest.

    Fewer than `FEWEST` rows cannot tell, and for more than `MOST` labels times rows forty-five fits take too long (a
    minute and a half there, benchmarks/results/tune-time-cpu.txt): then it is what is likely, or 1.

    Args:
        seeds: of each profile's folds, in the order in which they were given to `rotate`, as are the results.
        likely_shift: see `LIKELY_SHIFT`; nothing is known of heads that give numbers. A penalty p stands for shifts of
            ``√(mean ‖x‖² / p)``, and for as much by a bias that is drawn, too: log10 p is normal about the one for the
            likely shift, and how unlikely that makes it joins the losses, as tens of rows alone choose badly.
    """
    chosen: dict[int, float] = {}
    for group in given:
        shift = None if group.numbers else likely_shift
        unlikely = _unlikely(group, shift)
        usual = [1.0] * len(group.places) if shift is None else _least(unlikely)
        chosen |= dict(zip(group.places, usual, strict=True))
        sizes = enumerate(zip(group.counts, group.classes, strict=True))
        tell = [number for number, (count, classes) in sizes if count >= FEWEST and classes * count <= MOST]
        if tell:
            left_out = _left_out(group, [seeds[place] for place in group.places])
            own = torch.tensor(tell, device=left_out.device)
            best = _least(_losses(group, own, left_out) + unlikely[own])
            chosen |= {group.places[number]: penalty for number, penalty in zip(tell, best, strict=True)}
    return [chosen[place] for place in range(len(chosen))]


def _least(losses: Tensor) -> list[float]:
    """The penalties of the least of each row of ``[P', 9]``, the first of equals."""
    return [_DESCENDING[each.index(min(each))] for each in losses.tolist()]


def _unlikely(group: RotatedRows, shift: float | None) -> Tensor:
    """``[P, 9]``, how unlikely each penalty is, in nats; zero where nothing is known."""
    penalties = _column(_DESCENDING, group.mean)
    if shift is None:
        return penalties.new_zeros(len(group.places), len(penalties))
    return ((penalties / (group.square / shift**2)[:, None]).log10() / _DOUBT).square() / 2


def _left_out(group: RotatedRows, seeds: Sequence[int]) -> Tensor:
    """``[P, F, Q]``, 1 where a fold leaves a row out: each row is left out once."""
    left_out = np.zeros((len(seeds), _FOLDS, group.rows.shape[1]))
    for number, (seed, count) in enumerate(zip(seeds, group.counts, strict=True)):
        order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
        left_out[number, np.arange(count) % _FOLDS, order] = 1
    return torch.from_numpy(left_out).to(group.rows.device)


def _losses(group: RotatedRows, tell: Tensor, left_out: Tensor) -> Tensor:
    """``[P', 9]`` of some profiles' left-out rows under each penalty, the largest first."""
    units = tell[:, None].expand(-1, len(_DESCENDING)).flatten()
    penalties = _column(_DESCENDING, left_out).repeat(len(tell))
    weights = group.weights[:, None]
    kept = weights * (1 - left_out)
    asked = weights * left_out
    if not group.numbers and not group.draws_bias:
        asked = asked * _known(group, kept)
    found = []
    for part in _parts(len(units), group, weightings=_FOLDS):
        own = units[part]
        losses = [
            _fold_losses(group, own, kept[:, folds], asked[:, folds], penalties[part]) for folds in _fold_parts(group)
        ]
        found.append(torch.cat(losses, dim=1).sum(dim=(1, 2)))
    return torch.cat(found).view(len(tell), len(_DESCENDING))


def _fold_losses(group: RotatedRows, own: Tensor, kept: Tensor, asked: Tensor, penalties: Tensor) -> Tensor:
    """``[U, F, Q]``, weighted losses of the rows that are asked, where heads are solved for those that are kept."""
    given = _regressions(group, own, kept, penalties, tolerance=1e-4)
    _, logits = descend(given, numbers=group.numbers)
    if group.numbers:
        losses = (logits - given.targets)[:, :, 0].square() / 2
    else:
        losses = logits.logsumexp(dim=2) - (given.targets * logits).sum(dim=2)
    return losses * asked[own]


def _known(group: RotatedRows, kept: Tensor) -> Tensor:
    """``[P, F, Q]``, 1 where a fold keeps a row of the same label. Of one that it has not seen, a free bias falls until
    the solver stops, and that is all that such a row's loss would tell."""
    targets = group.targets()
    seen = torch.einsum("pfq,pcq->pfc", kept, targets) > 0
    return torch.einsum("pfc,pcq->pfq", seen.to(kept), targets)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype).to(like.device)


def _parts(units: int, group: RotatedRows, *, weightings: int) -> Iterator[slice]:
    """Of so many copies of a group's rows, as many as are small enough together."""
    width = max(group.rows.shape[2], weightings * group.bias.shape[1])
    return _slices(units, _NUMBERS // (width * group.rows.shape[1]))


def _fold_parts(group: RotatedRows) -> Iterator[slice]:
    """As many folds of one copy as are small enough together."""
    return _slices(_FOLDS, _NUMBERS // (group.bias.shape[1] * group.rows.shape[1]))


def _slices(count: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + max(1, most), count)) for start in range(0, count, max(1, most)))


def _fit(group: RotatedRows, own: Tensor, kept: Tensor, penalties: Tensor) -> Tensor:
    """``[U, F, C, R]``; where labels times rows of one profile are too many to hold, its rows go in parts."""
    rows, classes = group.rows.shape[1], group.bias.shape[1]
    several = rows * classes > _NUMBERS
    given = _regressions(group, own, kept, penalties, tolerance=1e-7, some=slice(0 if several else None))
    if not several:
        return descend(given, numbers=group.numbers)[0]
    some = [*_slices(rows, _PART // classes)]
    return descend_in_parts(
        given, lambda: (given._replace(**_tables(group, own, kept, each)) for each in some), numbers=group.numbers
    )


def _regressions(
    group: RotatedRows,
    own: Tensor,
    kept: Tensor,
    penalties: Tensor,
    *,
    tolerance: float,
    some: slice = slice(None),
) -> Regressions:
    """U profiles of a group, each under a penalty of its own, over the rows that each of F weightings keeps.

    Args: own: ``[U]`` places in the group; kept: ``[P, F, Q]``; penalties: ``[U]``;
        tolerance: of the largest element of the mean loss's gradient in W and b; some: of the rows.
    """
    rows = group.rows[own]
    penalty = penalties[:, None].repeat(1, rows.shape[2])
    penalty[:, 0] = 0
    # A gradient in W is that in V, which is no larger in any norm, and x̄ times that in the bias.
    reach = torch.full_like(penalty, 2**0.5)
    reach[:, 0] *= group.mean[own].abs().amax(dim=1).clamp(min=1)
    if group.draws_bias:
        # That in V has the one in the bias times s.
        reach *= group.square[own, None].rsqrt().clamp(1, 1 / _SHORTEST)
    counts, classes = _column(group.counts, rows)[own], _column(group.classes, rows)[own]
    labels = torch.arange(group.bias.shape[1], device=rows.device) < classes[:, None]
    return Regressions(
        **_tables(group, own, kept, some),
        squares=rows.square().sum(dim=1)[:, None, None],
        penalty=penalty[:, None, None],
        reach=reach[:, None, None],
        allowed=tolerance * (kept[own] > 0).sum(dim=2)[..., None, None].to(rows),
        present=counts[:, None, None, None],
        labels=labels.to(rows)[:, None, :, None],
    )


def _tables(group: RotatedRows, own: Tensor, kept: Tensor, some: slice) -> dict[str, Tensor]:
    """What of `Regressions` is as long as some of the rows."""
    return {
        "rows": group.rows[own, some],
        "targets": group.targets(some)[own, None],
        "kept": kept[own, :, None, some],
        "offsets": group.offsets(some)[own, None],
    }

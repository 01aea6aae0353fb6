"""Features of many profiles, each rotated into the few columns that they span, in float64 batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from .linear_head import HeadRows

_MOST_ELEMENTS = 2**21  # of the largest tensor
_NEVER = -1e30  # bias of a label that a narrower head lacks; finite, so that it can be multiplied by zero


class _Shape(NamedTuple):
    """Padded sizes of one profile's rows. They depend on it alone, so that no other profile changes a sum's order."""

    rows: int
    classes: int
    hidden: int
    numbers: bool
    draws_bias: bool

    @classmethod
    def of(cls, given: HeadRows) -> _Shape:
        rows, hidden = given.features.shape
        classes = _rounded_up(len(given.drawn_to.bias), 1)
        return cls(_rounded_up(rows, 8), classes, hidden, given.targets.is_floating_point(), given.draws_bias)


def _rounded_up(count: int, least: int) -> int:
    """Four sizes from one power of two to the next, all multiples of ``least``."""
    step = max(least, 1 << max(0, (count - 1).bit_length() - 3))
    return -(-count // step) * step


@dataclass(frozen=True, kw_only=True)
class RotatedRows:
    """P profiles' rows around their means x̄, in an orthonormal basis of the few directions that they have.

    Semantics: ``X - x̄ = rows[1:] basis[1:]``, so that any V in ``‖V‖² + f((X - x̄) Vᵀ)`` that is the best is some
    ``θ basis``, and its norm is θ's (Hastie and Tibshirani, "Efficient quadratic regularization for expression
    arrays", 2004, theorem 1). Column 0 of ``rows`` is the bias, all ones. A bias that is drawn to another is one more
    feature instead, as long as the others together: always ``s = √(mean ‖x‖²)``, and its part of V is the bias's
    shift divided by s. Then x̄ is zero, and so is column 0.

    Args:
        places: of the P profiles among those that were given.
        counts: Q of each; classes: C of each. Below, Q and C are those of the widest that would fit here.
        draws_bias: whether biases are drawn to those of the heads.
        rows: ``[P, Q, R]``, zero beyond a profile's own, R about min(Q, H); basis: ``[P, R, H]``; mean: ``[P, H]``.
        constant: ``[P, R]``, what θ adds to the bias.
        mean_square: ``[P]``, mean ‖x‖².
        answers: ``[P, 1, Q]``, numbers or places of labels; weights: ``[P, Q]``, zero beyond a profile's own.
        weight, bias: ``[P, C, H]`` and ``[P, C]`` of the heads that they are drawn to.
        features: as they were given.
        finite: ``[P]``, whether all features were; else they count as zero.
    """

    places: tuple[int, ...]
    counts: tuple[int, ...]
    classes: tuple[int, ...]
    numbers: bool
    draws_bias: bool
    rows: Tensor
    basis: Tensor
    mean: Tensor
    constant: Tensor
    mean_square: Tensor
    answers: Tensor
    weights: Tensor
    weight: Tensor
    bias: Tensor
    features: tuple[Tensor, ...]
    finite: Tensor

    def targets(self, some: slice = slice(None)) -> Tensor:
        """``[P, C, Q]`` of some rows, one-hot or numbers."""
        answers = self.answers[..., some]
        if not self.numbers:
            answers = answers == torch.arange(self.bias.shape[1], device=answers.device)[:, None]
        return answers.double()

    def offsets(self, some: slice = slice(None)) -> Tensor:
        """``[P, C, Q]`` of some rows, logits of the heads that they are drawn to."""
        rows = _padded([each[some] for each in self.features], self.answers[0, 0, some].numel()).double()
        features = torch.where(self.finite[:, None, None], rows, 0)
        return torch.baddbmm(self.bias[..., None], self.weight, features.mT)


@torch.no_grad()
def rotate(given: Sequence[HeadRows]) -> list[RotatedRows]:
    """Profiles of like shapes together; all features are on one device, and so is what comes of them."""
    shapes = [_Shape.of(each) for each in given]
    alike = groupby(sorted(range(len(given)), key=shapes.__getitem__), key=shapes.__getitem__)
    return [
        _rotated(part, [given[place] for place in part], shape)
        for shape, places in alike
        for part in _parts(places, shape)
    ]


def _parts(places: Iterator[int], shape: _Shape) -> Iterator[tuple[int, ...]]:
    rows, classes, hidden = shape.rows, shape.classes, shape.hidden
    most = max(1, _MOST_ELEMENTS // max(rows * hidden, classes * hidden, rows * classes))
    while part := tuple(islice(places, most)):
        yield part


def _rotated(places: tuple[int, ...], given: Sequence[HeadRows], shape: _Shape) -> RotatedRows:
    device = given[0].features.device

    def stacked(parts: Sequence[Tensor], size: int, fill: float = 0.0) -> Tensor:
        return _padded(parts, size, fill).to(device)

    features = _padded([each.features for each in given], shape.rows).double()
    weights = stacked([each.weights for each in given], shape.rows).double()
    weight = stacked([each.drawn_to.weight for each in given], shape.classes).double()
    bias = stacked([each.drawn_to.bias for each in given], shape.classes, _NEVER).double()
    live = stacked([torch.ones(len(each.targets)) for each in given], shape.rows).double()[..., None]
    finite = features.isfinite().all(dim=2).all(dim=1)
    features = torch.where(finite[:, None, None], features, 0)
    shares = weights[..., None] / weights.sum(dim=1)[:, None, None]
    mean_square = (shares * features.square()).sum(dim=(1, 2))
    if shape.draws_bias:
        mean, first = torch.zeros_like(features[:, 0]), torch.zeros_like(live)
        length = mean_square.sqrt()[:, None]
        rows, basis = _factored(torch.cat([features, length[..., None] * live], dim=2), centred=False)
        basis, constant = basis[..., :-1], length * basis[..., -1]
    else:
        mean, first = (shares * features).sum(dim=1), live
        rows, basis = _factored((features - mean[:, None]) * live, centred=True)
        constant = torch.zeros_like(basis[..., 0])
    return RotatedRows(
        places=places,
        counts=tuple(len(each.targets) for each in given),
        classes=tuple(len(each.drawn_to.bias) for each in given),
        numbers=shape.numbers,
        draws_bias=shape.draws_bias,
        rows=_with_bias(rows, first),
        basis=_with_bias(basis.mT, torch.zeros_like(mean)[..., None]).mT.contiguous(),
        mean=mean,
        constant=_with_bias(constant[:, None], torch.full_like(mean[:, :1, None], not shape.draws_bias))[:, 0],
        mean_square=mean_square,
        answers=stacked([each.targets for each in given], shape.rows, -1)[:, None],
        weights=weights,
        weight=weight,
        bias=bias,
        features=tuple(each.features for each in given),
        finite=finite,
    )


def _padded(parts: Sequence[Tensor], size: int, fill: float = 0.0) -> Tensor:
    """Along what comes first, ``[P, size, …]``."""
    return pad_sequence([*parts, parts[0].new_zeros(size, *parts[0].shape[1:])], True, fill)[:-1]


def _factored(features: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """``[P, Q, H]`` as the product of columns at right angles and an orthonormal basis, ``[P, Q, R]``, ``[P, R, H]``.

    By whichever of the two Gram matrices is the smaller. Of that of centred rows the least eigenvalue is left out: it
    is zero, as their weighted mean is.
    """
    if features.shape[1] > features.shape[2]:
        _, directions = torch.linalg.eigh(features.mT @ features)
        return features @ directions, directions.mT
    squares, places = torch.linalg.eigh(features @ features.mT)
    squares, places = squares[:, None, int(centred) :], places[..., int(centred) :]
    # What is less than the rounding of the largest has no direction.
    there = squares > squares[..., -1:] * squares.shape[2] * torch.finfo(squares.dtype).eps
    norms = torch.where(there, squares, 1).sqrt()
    return torch.where(there, places * norms, 0), torch.where(there, places / norms, 0).mT @ features


def _with_bias(columns: Tensor, bias: Tensor) -> Tensor:
    """``bias`` ``[P, M, 1]`` before ``[P, M, R]``, and zeros behind up to a multiple of 8."""
    joined = torch.cat([bias, columns], dim=2)
    return functional.pad(joined, (0, -joined.shape[2] % 8))

"""A head on fixed features: where a profile's own head starts, and what masks have to beat."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
FEWEST = 10
_FOLDS = 5


class LinearHead(NamedTuple):
    """``weight`` ``[C, H]`` and ``bias`` ``[C]``, float32."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """``[Q, H]`` → logits ``[Q, C]``."""
        return functional.linear(features, self.weight, self.bias)

    @classmethod
    def zero(cls, classes: int, hidden: int) -> LinearHead:
        return cls(torch.zeros(classes, hidden), torch.zeros(classes))


def fit_linear_head(
    features: Tensor, targets: Tensor, drawn_to: LinearHead, *, penalty: float, weights: Tensor | None = None
) -> LinearHead:
    """Multinomial logistic or linear regression, solved rather than descended: no learning rate, no randomness.

    Semantics: the minimum over W, b of ``mean(weights · loss(features Wᵀ + b)) + penalty / Q · ‖W - W₀‖² / 2``, where
    the loss is cross-entropy or, for targets that are numbers, half the squared error; a penalty of 1 is the usual
    C = 1. L-BFGS in float64, from W₀, b₀.

    Args: features: ``[Q, H]``; targets: ``[Q]`` int64 below C, or float32 with C = 1; drawn_to: W₀ and b₀;
        weights: ``[Q]``, mean 1; none: all one.
    """
    inputs, centre = features.double(), _joined(drawn_to, features)
    kept = _weights(weights, inputs)[None]
    solved = _solve(inputs, targets, kept, penalty, centre, centre[None], tolerance=1e-7)[0].float()
    return LinearHead(solved[:, :-1].contiguous(), solved[:, -1].contiguous())


def choose_penalty(
    features: Tensor, targets: Tensor, drawn_to: LinearHead, *, seed: int, weights: Tensor | None = None
) -> float:
    """The one of `PENALTIES` with the least loss in cross-validation over the rows, of equals the largest.

    Fewer than `FEWEST` rows cannot tell: then it is 1.

    Args: as in `fit_linear_head`; seed: of the folds.
    """
    inputs, rows = features.double(), len(targets)
    if rows < FEWEST:
        return 1.0
    centre = _joined(drawn_to, features)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(rows)
    left_out = torch.zeros(_FOLDS, rows, dtype=torch.bool, device=features.device)
    left_out[torch.arange(rows) % len(left_out), torch.from_numpy(order)] = True
    weigh = _weights(weights, inputs)
    solved = centre.expand(len(left_out), -1, -1)
    losses = {}
    for penalty in sorted(PENALTIES, reverse=True):  # each starts where the last one ended
        solved = _solve(inputs, targets, ~left_out * weigh, penalty, centre, solved, tolerance=1e-3)
        losses[penalty] = float((_losses(inputs, targets, solved) * left_out * weigh).sum())
    return min(losses, key=losses.__getitem__)


def _weights(weights: Tensor | None, inputs: Tensor) -> Tensor:
    return inputs.new_ones(len(inputs)) if weights is None else weights.to(inputs)


def _joined(head: LinearHead, features: Tensor) -> Tensor:
    """``[C, H + 1]`` float64, the bias last."""
    return torch.cat([head.weight, head.bias[:, None]], dim=1).to(features.device).double()


def _solve(
    inputs: Tensor, targets: Tensor, kept: Tensor, penalty: float, centre: Tensor, start: Tensor, *, tolerance: float
) -> Tensor:
    """F regressions at once, each over the rows that it keeps.

    Args: inputs: ``[Q, H]``; kept: ``[F, Q]`` weights, 0 for rows that are left out; centre: ``[C, H + 1]``, the bias
        last; start: ``[F, C, H + 1]``; tolerance: of the gradient's largest element.
    Returns: ``[F, C, H + 1]``.
    """
    solved = start.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [solved], max_iter=200, tolerance_grad=tolerance, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    rows = (kept > 0).sum(dim=1)

    def objective() -> Tensor:
        solver.zero_grad()
        fits = (_losses(inputs, targets, solved) * kept).sum(dim=1)
        away = (solved - centre)[..., :-1]
        loss = ((fits + penalty * away.square().sum(dim=(1, 2)) / 2) / rows).sum()
        torch.autograd.backward(loss)
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return solved.detach()


def _losses(inputs: Tensor, targets: Tensor, solved: Tensor) -> Tensor:
    """Loss ``[F, Q]`` of every row under each of F heads ``[F, C, H + 1]``."""
    logits = inputs @ solved[..., :-1].mT + solved[:, None, :, -1]
    if targets.is_floating_point():
        return (logits[..., 0] - targets).square() / 2
    return functional.cross_entropy(logits.permute(0, 2, 1), targets.expand(len(solved), -1), reduction="none")

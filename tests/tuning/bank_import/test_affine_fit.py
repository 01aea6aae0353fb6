from __future__ import annotations

import pytest
import torch

from xpeft_tuning.bank_import.affine_fit import AffineFit, ExplainedVariance


def rows(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_batches_add_up_to_the_least_squares_of_all_rows() -> None:
    inputs, outputs = rows(300, 6, 0) + 3, rows(300, 2, 1)
    fit = AffineFit(6, 2)
    for part in (slice(0, 7), slice(7, 7), slice(7, 300)):
        fit.add(inputs[part], outputs[part])
    extended = torch.cat([inputs, torch.ones(300, 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(extended, outputs).solution
    found = fit.solve()
    torch.testing.assert_close(found.weight, solution[:-1], rtol=0, atol=1e-7)
    torch.testing.assert_close(found.bias, solution[-1], rtol=0, atol=1e-6)


def test_directions_that_no_row_shows_get_no_weight() -> None:
    inputs = torch.cat([rows(50, 2, 0), torch.full((50, 1), 4.0, dtype=torch.float64)], dim=1)
    weight, bias = torch.tensor([[2.0], [-1.0], [0.0]], dtype=torch.float64), 5.0
    fit = AffineFit(3, 1)
    fit.add(inputs, inputs @ weight + bias)
    found = fit.solve()
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(found(inputs), inputs @ weight + bias, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("estimate", "share"),
    [
        (lambda values: values, 1.0),
        (lambda values: values.mean(0).expand_as(values), 0.0),
        (lambda values: values.mean(0) + (values - values.mean(0)) / 2, 0.75),
        (lambda values: 2 * values.mean(0) - values, -3.0),
    ],
)
def test_explained_variance_counts_from_the_mean(estimate: object, share: float) -> None:
    values = rows(40, 3, 2) + 10
    assert callable(estimate)
    explained = ExplainedVariance(3)
    for part in (slice(0, 15), slice(15, 40)):
        explained.add(values[part], estimate(values)[part])
    assert explained.share() == pytest.approx(share, abs=1e-9)


def test_nothing_is_explained_wholly() -> None:
    explained = ExplainedVariance(3)
    explained.add(torch.zeros(5, 3, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64))
    assert explained.share() == 1

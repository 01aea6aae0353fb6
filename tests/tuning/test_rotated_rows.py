from __future__ import annotations

import pytest
import torch

from xpeft_tuning.linear_head import HeadRows, LinearHead
from xpeft_tuning.rotated_rows import rotate


def _given(rows: int, hidden: int, classes: int = 2, seed: int = 0) -> HeadRows:
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(torch.randn(classes, hidden, generator=generator), torch.randn(classes, generator=generator))
    weights = torch.rand(rows, generator=generator) + 0.5
    features = 3 + torch.randn(rows, hidden, generator=generator)
    return HeadRows(features, torch.arange(rows) % classes, head, weights)


@pytest.mark.parametrize("hidden", [5, 39, 40, 41, 200])
def test_rows_times_basis_are_the_features_around_their_mean(hidden: int) -> None:
    given = _given(37, hidden)
    (rotated,) = rotate([given])
    weights = given.weights.double()
    mean = weights @ given.features.double() / weights.sum()
    torch.testing.assert_close(rotated.mean[0], mean, rtol=0, atol=1e-12)
    turned = rotated.rows[0, :37, 1:] @ rotated.basis[0, 1:]
    torch.testing.assert_close(turned, given.features.double() - mean, rtol=0, atol=1e-10)
    assert not rotated.rows[0, 37:].any()
    assert not rotated.basis[0, 0].any()
    assert rotated.rows[0, :37, 0].eq(1).all()


@pytest.mark.parametrize("hidden", [5, 36, 37, 200])
def test_a_bias_that_is_drawn_is_one_more_feature_as_long_as_the_others(hidden: int) -> None:
    given = _given(37, hidden)._replace(draws_bias=True)
    (rotated,) = rotate([given])
    weights, features = given.weights.double(), given.features.double()
    square = weights @ features.square().sum(dim=1) / weights.sum()
    torch.testing.assert_close(rotated.mean_square[0], square)
    assert not rotated.mean.any()
    assert not rotated.rows[..., 0].any()
    assert not rotated.constant[0, 0]
    rows = rotated.rows[0, :37, 1:]
    torch.testing.assert_close(rows @ rotated.basis[0, 1:], features, rtol=0, atol=1e-10)
    torch.testing.assert_close(rows @ rotated.constant[0, 1:], square.expand(37), rtol=0, atol=1e-9)
    whole = torch.cat([rotated.basis[0, 1:], rotated.constant[0, 1:, None] / square.sqrt()], dim=1)
    whole = whole[rows.square().sum(dim=0) > 1e-9]
    assert len(whole) == min(hidden + 1, 37)
    torch.testing.assert_close(whole @ whole.mT, torch.eye(len(whole)).double(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("hidden", [5, 200])
@pytest.mark.parametrize("alike", [False, True])
def test_a_basis_is_orthonormal_and_columns_are_at_right_angles(hidden: int, alike: bool) -> None:
    given = _given(37, hidden)
    if alike:  # few directions for many rows
        given = given._replace(features=given.features[torch.arange(37) % 4])
    (rotated,) = rotate([given])
    columns = rotated.rows[0, :, 1:]
    gram = columns.mT @ columns
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-10)
    basis = rotated.basis[0, 1:][gram.diagonal() > 1e-9]
    assert len(basis) == min(hidden, 3 if alike else 36)
    torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)).double(), rtol=0, atol=1e-10)


def test_there_are_about_as_many_columns_as_the_fewer_of_rows_and_features() -> None:
    for rows, hidden, columns in ((60, 384, 64), (60, 16, 24), (1000, 24, 32)):
        (rotated,) = rotate([_given(rows, hidden)])
        assert rotated.rows.shape[2] == columns
        assert rows <= rotated.rows.shape[1] < 1.25 * rows + 8


def test_profiles_of_like_rows_and_labels_are_together_and_others_are_not() -> None:
    shapes = [(60, 2), (58, 2), (20, 2), (60, 3), (64, 2), (57, 9), (60, 10)]
    given = [_given(rows, 30, classes, seed) for seed, (rows, classes) in enumerate(shapes)]
    numbers = given[0]._replace(targets=torch.rand(60), drawn_to=LinearHead.zero(1, 30))
    rotated = rotate([*given, numbers, given[0]._replace(draws_bias=True)])
    assert sorted(each.places for each in rotated) == [(0, 1, 4), (2,), (3,), (5, 6), (7,), (8,)]
    assert [each.numbers for each in rotated if each.places == (7,)] == [True]
    assert [each.draws_bias for each in rotated if each.places == (8,)] == [True]


def test_labels_that_a_narrower_head_lacks_have_no_share() -> None:
    narrow, wide = _given(60, 30, 9), _given(60, 30, 10)
    (rotated,) = rotate([narrow, wide])
    shares = rotated.offsets().softmax(dim=1)
    assert shares[0, 9].eq(0).all()
    assert shares[1, 9].gt(0).all()
    expected = narrow.drawn_to(narrow.features).softmax(1).T
    torch.testing.assert_close(shares[0, :9, :60].float(), expected, rtol=1e-4, atol=1e-5)

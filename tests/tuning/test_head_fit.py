from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from xpeft_tuning import head_descent, head_fit, rotated_rows
from xpeft_tuning.head_descent import DescentState, Regressions
from xpeft_tuning.head_fit import (
    FEWEST_ROWS,
    LIKELY_SHIFT,
    PENALTIES,
    bias_penalties,
    choose_penalties,
    fit_linear_heads,
)
from xpeft_tuning.linear_head import HeadRows, LinearHead
from xpeft_tuning.rotated_rows import rotate

ZERO = LinearHead.zero(3, 5)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _rows(features: Tensor, targets: Tensor, drawn_to: LinearHead, weights: Tensor | None = None) -> HeadRows:
    return HeadRows(features, targets, drawn_to, torch.ones(len(targets)) if weights is None else weights)


def _fitted(rows: HeadRows, penalty: float) -> LinearHead:
    (head,) = fit_linear_heads(rotate([rows]), penalties=[penalty])
    return head


def _chosen(features: Tensor, targets: Tensor, drawn_to: LinearHead, shift: float | None = None) -> float:
    (penalty,) = choose_penalties(rotate([_rows(features, targets, drawn_to)]), seeds=[0], likely_shift=shift)
    return penalty


def _blobs(rows: int, spread: float, hidden: int = 5) -> tuple[Tensor, Tensor]:
    targets = torch.arange(rows) % 3
    return torch.eye(3, hidden)[targets] + spread * _normal(rows, hidden), targets


def _objective(rows: HeadRows, weight: Tensor, bias: Tensor, penalty: float, weights: Tensor) -> Tensor:
    """As `fit_linear_heads` has it, times Q: of weights that are not zero."""
    logits = rows.features.double() @ weight.T + bias
    if rows.targets.is_floating_point():
        losses = (logits[:, 0] - rows.targets).square() / 2
    else:
        losses = functional.cross_entropy(logits, rows.targets, reduction="none")
    square = (weight - rows.drawn_to.weight).square().sum()
    if rows.draws_bias:
        length = weights @ rows.features.double().square().sum(1) / weights.sum()
        square = square + (bias - rows.drawn_to.bias).square().sum() / length
    return (weights * losses).sum() + penalty * square / 2


def _gradients(rows: HeadRows, head: LinearHead, penalty: float) -> tuple[Tensor, ...]:
    parts = [each.double().requires_grad_() for each in head]
    return torch.autograd.grad(_objective(rows, parts[0], parts[1], penalty, rows.weights.double()), parts)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many regressions each step was of."""
    found: list[int] = []
    step = head_descent._step

    def counted(given: Regressions, here: DescentState, numbers: bool) -> DescentState:
        found.append(given.weights.shape[0] * given.weights.shape[1])
        return step(given, here, numbers)

    monkeypatch.setattr(head_descent, "_step", counted)
    return found


@pytest.mark.parametrize("rows", [4, 30, 47])
@pytest.mark.parametrize("hidden", [5, 47, 200])
@pytest.mark.parametrize("centre", [0.0, 1.0])
@pytest.mark.parametrize("penalty", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("draws_bias", [False, True])
def test_the_gradient_of_the_objective_vanishes_at_the_solution(
    draws_bias: bool, penalty: float, centre: float, hidden: int, rows: int
) -> None:
    features, targets = _blobs(rows, 0.7, hidden)
    drawn_to = LinearHead(centre * _normal(3, hidden, seed=1), centre * _normal(3, seed=2))
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(4)) + 0.5
    given = _rows(features + 3, targets, drawn_to, weights)._replace(draws_bias=draws_bias)
    head = _fitted(given, penalty)
    for gradient in _gradients(given, head, penalty):
        # 1e-7 a row is what is solved for; the head is rounded to float32, which moves logits by some 1e-6.
        assert gradient.abs().max() < 3e-6 * rows
    torch.testing.assert_close(head.bias.sum(), drawn_to.bias.sum(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("hidden", [5, 60])
@pytest.mark.parametrize("penalty", [0.1, 30.0])
def test_of_numbers_it_is_ridge_regression(penalty: float, hidden: int) -> None:
    features, targets, centre = _normal(40, hidden), 3 * _normal(40, seed=1) + 7, _normal(1, hidden, seed=2)
    head = _fitted(_rows(features, targets, LinearHead(centre, torch.zeros(1))), penalty)
    inputs = (features - features.mean(0)).double()
    away = (targets - targets.mean()).double() - inputs @ centre[0].double()
    wanted = centre[0] + torch.linalg.solve(inputs.T @ inputs + penalty * torch.eye(hidden).double(), inputs.T @ away)
    torch.testing.assert_close(head.weight[0], wanted.float(), rtol=1e-5, atol=1e-5)
    bias = targets.double().mean() - features.double().mean(0) @ wanted
    torch.testing.assert_close(head.bias[0], bias.float(), rtol=1e-5, atol=1e-5)


def test_a_huge_penalty_leaves_the_head_where_it_is_drawn_to() -> None:
    features, targets = _blobs(30, 0.7)
    drawn_to = LinearHead(_normal(3, 5, seed=1), torch.zeros(3))
    head = _fitted(_rows(features, targets, drawn_to), 1e12)
    torch.testing.assert_close(head.weight, drawn_to.weight, rtol=1e-6, atol=1e-6)
    assert head.bias.abs().max() > 0.01


def test_a_huge_penalty_leaves_a_bias_where_it_is_drawn_to() -> None:
    features, targets = _blobs(30, 0.7)
    drawn_to = LinearHead(_normal(3, 5, seed=1), _normal(3, seed=2))
    rows = _rows(features, targets, drawn_to)._replace(draws_bias=True)
    head = _fitted(rows, 1e12)
    torch.testing.assert_close(head, drawn_to, rtol=1e-6, atol=1e-6)
    (penalty,) = bias_penalties(rotate([rows]), [10.0])
    assert penalty == pytest.approx(10 / features.square().sum(1).mean().item())
    assert bias_penalties(rotate([rows._replace(draws_bias=False)]), [10.0]) == [0]


def test_a_bias_is_drawn_however_short_the_features_are() -> None:
    """None at all is a head that stays as it is."""
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    for length in (1e-2, 0.0):
        rows = _rows(torch.full((8, 5), length), targets, ZERO)._replace(draws_bias=True)
        head = _fitted(rows, 1.0)
        assert head.weight.isfinite().all()
        assert head.bias.abs().max() < 1e-2


def test_without_a_penalty_rows_that_can_be_parted_are_and_the_head_is_finite() -> None:
    targets = torch.arange(12) % 3
    head = _fitted(_rows(torch.eye(3, 40)[targets], targets, LinearHead.zero(3, 40)), 0.0)
    assert head.weight.isfinite().all()
    assert head(torch.eye(3, 40)).softmax(1).diagonal().min() > 1 - 1e-5


def test_rows_that_are_all_alike_have_the_shares_of_their_labels() -> None:
    head = _fitted(_rows(torch.ones(8, 5), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2]), ZERO), 1.0)
    torch.testing.assert_close(head(torch.ones(1, 5)).softmax(1)[0], torch.tensor([0.5, 0.25, 0.25]))


def test_noise_asks_for_a_large_penalty_and_clean_rows_for_the_smallest() -> None:
    clean, targets = _blobs(60, 0.1)
    assert _chosen(_normal(60, 5, seed=3), targets, ZERO) >= 10
    assert _chosen(clean, targets, ZERO) == min(PENALTIES)


def test_of_numbers_too() -> None:
    features, noise = _normal(60, 5), _normal(60, seed=1)
    zero = LinearHead.zero(1, 5)
    assert _chosen(features, noise, zero) >= 10
    assert _chosen(features, features.sum(1), zero) == min(PENALTIES)


def test_rows_that_fit_what_the_head_is_drawn_to_ask_for_the_largest_penalty() -> None:
    drawn_to = LinearHead(4 * _normal(3, 5, seed=1), torch.zeros(3))
    features = _normal(60, 5)
    labels = torch.distributions.Categorical(logits=drawn_to(features))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        targets = labels.sample()
    assert _chosen(features, targets, drawn_to) >= 10
    assert _chosen(features, targets, ZERO) < 1


def test_of_equal_penalties_the_largest_is_chosen() -> None:
    assert _chosen(torch.zeros(20, 5), torch.arange(20) % 3, ZERO) == max(PENALTIES)


@pytest.mark.parametrize(("length", "shift", "penalty"), [(1.0, 1.0, 1.0), (5.0, 0.5, 100.0), (5.0, 1e-3, 1000.0)])
def test_the_likely_penalty_is_that_of_shifts_as_large_as_is_likely(
    length: float, shift: float, penalty: float
) -> None:
    features = length * functional.normalize(1 + _normal(FEWEST_ROWS - 1, 5))
    targets = torch.arange(FEWEST_ROWS - 1) % 3
    assert _chosen(features, targets, ZERO, shift) == penalty
    assert _chosen(features, targets, ZERO) == 1


def test_heads_of_users_that_differ_a_little_do_better_on_other_rows_if_that_is_known() -> None:
    shared, users = LinearHead(2 * _normal(3, 5, seed=1), torch.zeros(3)), 16
    features = 2 * _normal(users, 360, 5, seed=2)
    shifts = LIKELY_SHIFT / features.square().sum(2).mean().sqrt() * _normal(users, 3, 5, seed=3)
    chances = (torch.einsum("uqh,uch->uqc", features, shared.weight + shifts)).softmax(2)
    drawn = torch.rand(users, 360, 1, generator=torch.Generator().manual_seed(4))
    targets = (chances.cumsum(2) < drawn).sum(2).clamp(max=2)
    rotated = rotate([_rows(features[user, :60], targets[user, :60], shared) for user in range(users)])
    losses = []
    for shift in (LIKELY_SHIFT, None):
        penalties = choose_penalties(rotated, seeds=[0] * users, likely_shift=shift)
        heads = fit_linear_heads(rotated, penalties=penalties)
        logits = torch.stack([head(own[60:]) for head, own in zip(heads, features, strict=True)])
        losses.append(functional.cross_entropy(logits.flatten(0, 1), targets[:, 60:].flatten()).item())
    assert losses[0] < losses[1] - 0.005


def test_rows_that_tell_otherwise_are_believed() -> None:
    features, targets = _blobs(60, 0.1)
    other = LinearHead(-3 * torch.eye(3, 5), torch.zeros(3))
    assert _chosen(features, targets, other, LIKELY_SHIFT) < 4 * features.square().sum(1).mean() / 3


def test_nothing_is_known_of_numbers() -> None:
    features, noise = _normal(60, 5), _normal(60, seed=1)
    for targets in (noise, features.sum(1)):
        zero = LinearHead.zero(1, 5)
        assert _chosen(features, targets, zero, LIKELY_SHIFT) == _chosen(features, targets, zero)


def test_labels_in_a_rhythm_as_long_as_the_folds_are_many_are_in_all_folds() -> None:
    targets = torch.arange(60) % 5
    features = torch.eye(5)[targets] + 0.1 * _normal(60, 5)
    assert _chosen(features, targets, LinearHead.zero(5, 5)) == min(PENALTIES)


def test_two_rows_are_enough_to_fit_and_too_few_to_choose_a_penalty() -> None:
    features, targets = torch.eye(2), torch.tensor([0, 1])
    zero = LinearHead.zero(2, 2)
    assert _chosen(features, targets, zero) == 1
    assert _fitted(_rows(features, targets, zero), 1.0)(features).argmax(1).tolist() == [0, 1]


def test_labels_that_no_row_has_are_soon_given_up(steps: list[int]) -> None:
    """Their biases have no minimum: steps that bend alike for all labels would take thousands."""
    drawn_to = LinearHead(_normal(9, 5, seed=1), torch.zeros(9))
    head = _fitted(_rows(_normal(40, 5), torch.arange(40) % 3, drawn_to), 10.0)
    assert head(_normal(40, 5)).softmax(1)[:, 3:].max() < 1e-5
    assert len(steps) <= 60


def test_a_label_that_a_fold_lacks_is_no_trouble() -> None:
    features, targets = _normal(FEWEST_ROWS, 5), torch.tensor([0] * (FEWEST_ROWS - 1) + [2])
    assert _chosen(features, targets, ZERO) in PENALTIES


@pytest.mark.parametrize("seed", range(4))
def test_a_row_whose_label_no_other_has_does_not_choose_the_penalty(seed: int) -> None:
    """However much it weighs: what a fold without it would give it says when the solver stopped, and nothing else."""
    features = _normal(41, 5, seed=seed)
    targets = ((features[:, 0] + _normal(41, seed=50 + seed)) > 0).long()
    targets[40] = 2
    weights = torch.ones(41)
    chosen = []
    for weight in (1e-6, 40.0):
        weights[40] = weight
        chosen += choose_penalties(rotate([_rows(features, targets, ZERO, weights)]), seeds=[seed])
    known = _cross_validated(_rows(features, targets, ZERO, weights), seed, without=40)
    assert chosen[1] == PENALTIES[known.index(min(known))]


def test_weights_count_a_row_as_often_as_they_say() -> None:
    features, targets = _normal(40, 5, seed=8), torch.arange(40) % 3
    weights = torch.tensor([2.0, 0.0]).repeat_interleave(20)
    weighted = _fitted(_rows(features, targets, ZERO, weights), 1.0)
    alone = _fitted(_rows(features[:20], targets[:20], ZERO), 0.5)
    torch.testing.assert_close(weighted.weight, alone.weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weighted.bias, alone.bias, rtol=1e-4, atol=1e-5)


def _minimum(rows: HeadRows, kept: Tensor, penalty: float) -> list[Tensor]:
    """Weight and bias by L-BFGS on the features as they are."""
    head = [each.double().requires_grad_() for each in rows.drawn_to]
    solver = torch.optim.LBFGS(
        head, max_iter=400, tolerance_grad=1e-6, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = _objective(rows, head[0], head[1], penalty, kept)
        torch.autograd.backward(loss)
        return loss

    solver.step(objective)  # type: ignore[no-untyped-call]
    return [each.detach() for each in head]


def _cross_validated(rows: HeadRows, seed: int, *, without: int | None = None) -> list[float]:
    """Loss under each penalty by the textbook, a fold at a time; of all rows, or without one's."""
    order = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).permutation(len(rows.targets)))
    weights, losses = rows.weights.double(), []
    for penalty in PENALTIES:
        losses.append(0.0)
        for fold in range(5):
            out = torch.zeros_like(weights).index_fill(0, order[fold::5], 1.0)
            weight, bias = _minimum(rows, weights * (1 - out), penalty)
            asked = weights * out
            if without is not None:
                asked[without] = 0
            losses[-1] += float(_objective(rows, weight, bias, 0.0, asked))
    return losses


def _ragged() -> list[HeadRows]:
    """Profiles of different rows, labels, centres and weights, numbers among them, over 40 features."""
    found = []
    for number, (rows, classes) in enumerate([(23, 2), (47, 2), (24, 3), (60, 9), (9, 2), (31, 1), (41, 2), (58, 10)]):
        features = _normal(rows, 40, seed=number) + 2
        weight = _normal(classes, 40, seed=100 + number)
        noisy = features @ weight.T + 3 * _normal(rows, classes, seed=200 + number)
        targets = noisy[:, 0] if classes == 1 else noisy.argmax(1)
        drawn_to = LinearHead.zero(classes, 40)
        if number % 2:
            drawn_to = LinearHead(0.3 * weight, _normal(classes, seed=number))
        weights = torch.rand(rows, generator=torch.Generator().manual_seed(number)) + 0.5
        found.append(HeadRows(features, targets, drawn_to, weights / weights.mean()))
    return found


@pytest.mark.parametrize("number", [0, 2, 5])
def test_the_penalty_is_the_one_that_a_textbook_chooses(number: int) -> None:
    rows = _ragged()[number]
    losses = _cross_validated(rows, seed=7)
    best = PENALTIES[losses.index(min(losses))]
    assert sorted(losses)[1] > min(losses) * (1 + 1e-4)
    assert choose_penalties(rotate([rows]), seeds=[7]) == [best]


def _all(
    rows: Sequence[HeadRows], seeds: Sequence[int], shift: float | None = None
) -> tuple[list[float], list[LinearHead]]:
    rotated = rotate(rows)
    penalties = choose_penalties(rotated, seeds=seeds, likely_shift=shift)
    return penalties, fit_linear_heads(rotated, penalties=penalties)


@pytest.mark.parametrize("shift", [None, 3.0])
def test_a_profile_has_the_same_head_alone_and_in_company_bit_for_bit(shift: float | None) -> None:
    rows = _ragged()
    seeds = list(range(len(rows)))
    alone = [_all([each], [seed], shift) for each, seed in zip(rows, seeds, strict=True)]
    penalties, heads = _all([*rows, *rows[::-1]], [*seeds, *seeds[::-1]], shift)
    assert len(set(penalties)) > 3
    for penalty, head, ((own_penalty,), (own,)) in zip(penalties, heads, [*alone, *alone[::-1]], strict=True):
        assert penalty == own_penalty
        assert torch.equal(head.weight, own.weight)
        assert torch.equal(head.bias, own.bias)


def test_heads_are_the_same_if_only_a_few_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _ragged() * 2
    seeds = list(range(len(rows)))
    penalties, heads = _all(rows, seeds)
    groups = len(rotate(rows))
    monkeypatch.setattr(rotated_rows, "_MOST_ELEMENTS", 1)
    monkeypatch.setattr(head_fit, "_MOST_ELEMENTS", 10 * 64)  # one fold of the widest
    assert groups < len(rotate(rows)) == len(rows)
    few = _all(rows, seeds)
    assert few[0] == penalties
    for found, wanted in zip(few[1], heads, strict=True):
        assert torch.equal(found.weight, wanted.weight)
        assert torch.equal(found.bias, wanted.bias)


@pytest.mark.parametrize("draws_bias", [False, True])
@pytest.mark.parametrize("part", [1, 100, 10_000])
def test_heads_are_as_good_if_only_some_of_a_profiles_rows_fit_at_once(
    part: int, draws_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [each._replace(draws_bias=draws_bias and len(each.drawn_to.bias) > 1) for each in _ragged()]
    for module in (rotated_rows, head_fit):
        monkeypatch.setattr(module, "_MOST_ELEMENTS", 1)
    monkeypatch.setattr(head_fit, "_PART_ELEMENTS", part)
    found = fit_linear_heads(rotate(rows), penalties=[3.0] * len(rows))
    for given, head in zip(rows, found, strict=True):
        for gradient in _gradients(given, head, 3.0):
            assert gradient.abs().max() < 3e-6 * len(given.targets)


class _Largest(TorchDispatchMode):
    """How many numbers the largest tensor of any operation has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, tuple | list) else [found]:
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.untyped_storage().size() // 8)
        return found


@pytest.mark.parametrize(("most", "folds"), [(40 * 320, 1), (2 * 40 * 320, 2), (1, 0)])
def test_no_table_is_larger_than_is_allowed_however_many_labels_and_rows_there_are(
    most: int, folds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one fold's, where a penalty is chosen at all, and what is as large as the features."""
    monkeypatch.setattr(rotated_rows, "_MOST_ELEMENTS", most)
    monkeypatch.setattr(head_fit, "_MOST_ELEMENTS", most)
    monkeypatch.setattr(head_fit, "_PART_ELEMENTS", 1000)
    monkeypatch.setattr(head_fit, "MOST_LOGITS", min(most, head_fit.MOST_LOGITS))
    monkeypatch.setattr(head_descent, "_MAX_STEPS", 8)
    given = _rows(_normal(320, 7), torch.arange(320) % 40, LinearHead.zero(40, 7))
    with _Largest() as largest:
        (penalty,), _ = _all([given], [0])
    assert largest.numbers == max(folds * 40 * 320, 320 * 8)
    if not folds:
        assert penalty == 1


def test_more_labels_times_rows_than_a_choice_is_worth_take_the_likely_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = _blobs(60, 0.1)
    assert _chosen(features, targets, ZERO) == min(PENALTIES)
    monkeypatch.setattr(head_fit, "MOST_LOGITS", 3 * 60)
    assert _chosen(features, targets, ZERO) == min(PENALTIES)
    monkeypatch.setattr(head_fit, "MOST_LOGITS", 3 * 60 - 1)
    assert _chosen(features, targets, ZERO) == 1
    assert _chosen(features, targets, ZERO, 0.5) > 1


def test_features_that_are_no_numbers_leave_only_their_own_profile_without_a_head() -> None:
    rows = _ragged()[:2]
    whole = _all(rows, [0, 1])
    broken = rows[0].features.clone()
    broken[3, 7] = torch.inf
    penalties, heads = _all([rows[0]._replace(features=broken), rows[1], rows[0]], [0, 1, 0])
    assert heads[0].weight.isnan().all()
    assert penalties[1:] == whole[0][::-1]
    for found, wanted in zip(heads[1:], whole[1][::-1], strict=True):
        assert torch.equal(found.weight, wanted.weight)


def test_steps_and_looks_at_the_device_are_few_however_many_the_profiles(
    steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two products a step, nine penalties and five folds in each: 60 rows of 384 features that go together."""
    looks = []
    unsolved = head_descent._unsolved
    monkeypatch.setattr(head_descent, "_unsolved", lambda active: looks.append(1) or unsolved(active))
    shared = _normal(384, 384, seed=1) * torch.logspace(0, -2, 384)
    rows = []
    for number in range(16):
        features = _normal(60, 384, seed=number) @ shared
        targets = (features[:, 0] + 5 * _normal(60, seed=50 + number) > 0).long()
        rows.append(_rows(features, targets, LinearHead.zero(2, 384)))
    rotated = rotate(rows)
    penalties = choose_penalties(rotated, seeds=[0] * 16)
    assert steps[0] == 16 * 9 * 5
    assert len(steps) == 4 * len(looks) <= 60
    steps.clear()
    fit_linear_heads(rotated, penalties=penalties)
    assert steps[0] == 16
    assert len(steps) <= 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_heads_of_a_gpu_are_those_of_the_cpu_in_any_company() -> None:
    rows = _ragged()
    seeds = list(range(len(rows)))
    penalties, heads = _all(rows, seeds)
    there = [each._replace(features=each.features.cuda()) for each in rows]
    found_penalties, found = _all([*there, *there], seeds * 2)
    assert found_penalties == penalties * 2
    for one, other in zip(found, heads * 2, strict=True):
        torch.testing.assert_close(one.weight.cpu(), other.weight, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.bias.cpu(), other.bias, rtol=1e-4, atol=1e-4)

"""What a descent promises of every step, on regressions that are far from where they have to go."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from xpeft_tuning import head_descent
from xpeft_tuning.head_descent import DescentState, Regressions, descend, descend_in_parts

FOLDS, CLASSES, ROWS, COLUMNS = 3, 4, 24, 16


def _hard(numbers: bool = False) -> Regressions:
    """Rows up to a thousand times as large in one set as in another, and heads that are sure of what is wrong."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    sizes = torch.tensor([0.1, 1.0, 10.0, 100.0], dtype=torch.double)
    rows = torch.linalg.qr(normal(4, ROWS, COLUMNS))[0] * torch.logspace(0, -1, COLUMNS) * sizes[:, None, None]
    rows[..., 0] = 1
    labels = torch.randint(0, CLASSES, (4, ROWS), generator=generator)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).mT[:, None].double()
    weights = (torch.rand(4, FOLDS, 1, ROWS, generator=generator) > 0.2).double()
    penalty = torch.tensor([0.1, 1.0, 0.3, 10.0], dtype=torch.double)[:, None, None, None].repeat(1, 1, 1, COLUMNS)
    penalty[..., 0] = 0
    return Regressions(
        rows=rows,
        column_squares=rows.square().sum(dim=1)[:, None, None],
        targets=normal(4, 1, 1, ROWS) if numbers else one_hot,
        weights=weights,
        offsets=50 * normal(4, FOLDS, 1 if numbers else CLASSES, ROWS),
        penalty=penalty,
        norm_weights=torch.ones_like(penalty),
        tolerance=torch.full((4, FOLDS, 1, 1), 1e-6, dtype=torch.double),
        row_count=torch.full((4, 1, 1, 1), ROWS, dtype=torch.double),
        label_mask=torch.ones(4, 1, 1 if numbers else CLASSES, 1, dtype=torch.double),
    )


def _objective(given: Regressions, solved: Tensor, logits: Tensor) -> Tensor:
    """``[U, F]``."""
    losses = logits.logsumexp(dim=2) - (given.targets * logits).sum(dim=2)
    pulls = (given.penalty * solved.square()).sum(dim=(2, 3)) / 2
    return (given.weights[:, :, 0] * losses).sum(dim=2) + pulls


def _course(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Objectives of four sets before each step and after the last, as far as none has left."""
    given = _hard()
    course: list[Tensor] = []
    step = head_descent._step

    def watched(given: Regressions, here: DescentState, numbers: bool) -> DescentState:
        if len(here.solution) == 4:
            course.append(_objective(given, here.solution, here.logits))
        return step(given, here, numbers)

    monkeypatch.setattr(head_descent, "_step", watched)
    course.append(_objective(given, *descend(given, numbers=False)))
    return course


def _rises(course: list[Tensor]) -> bool:
    return any(bool((after > before + 1e-12 * before.abs()).any()) for before, after in pairwise(course))


def test_no_step_ever_leads_up(monkeypatch: pytest.MonkeyPatch) -> None:
    course = _course(monkeypatch)
    assert len(course) > 20
    assert bool((course[-1] < 0.95 * course[0]).all())
    assert not _rises(course)


def test_steps_of_newtons_length_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_descent, "_safe_length", lambda slope, curvature, _: -slope / curvature.clamp(min=1e-3))
    assert _rises(_course(monkeypatch))


def test_logits_are_those_of_what_is_solved_and_the_gradient_is_gone() -> None:
    given = _hard()
    solved, logits = descend(given, numbers=False)
    expected = given.offsets + torch.einsum("ufcr,uqr->ufcq", solved, given.rows)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    residuals = given.weights * (logits.softmax(dim=2) - given.targets)
    gradient = given.penalty * solved + torch.einsum("ufcq,uqr->ufcr", residuals, given.rows)
    assert gradient.flatten(2).norm(dim=2).max() < 1.01e-6


def test_of_numbers_the_normal_equations_hold() -> None:
    given = _hard(numbers=True)
    solved, _ = descend(given, numbers=True)
    for unit in range(4):
        for fold in range(FOLDS):
            rows, weights = given.rows[unit], given.weights[unit, fold, 0, :, None]
            hessian = rows.T @ (weights * rows) + torch.diag(given.penalty[unit, 0, 0])
            away = given.targets[unit, 0, 0] - given.offsets[unit, fold, 0]
            wanted = torch.linalg.solve(hessian, rows.T @ (weights[:, 0] * away))
            torch.testing.assert_close(solved[unit, fold, 0], wanted, rtol=1e-5, atol=1e-5)


def test_what_is_solved_is_not_touched_again_while_others_go_on() -> None:
    given = _hard()
    together = descend(given, numbers=False)
    for unit in range(4):
        own = slice(unit, unit + 1)
        alone = descend(Regressions(*(each[own] for each in given)), numbers=False)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one, other[own])


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("rows", [1, 7, ROWS])
def test_rows_that_come_in_parts_lead_to_the_same_minimum(rows: int, numbers: bool) -> None:
    given = _hard(numbers)
    shared = given._replace(**_some(given, slice(0)))
    some = [slice(start, start + rows) for start in range(0, ROWS, rows)]
    solved = descend_in_parts(shared, lambda: (given._replace(**_some(given, each)) for each in some), numbers=numbers)
    torch.testing.assert_close(solved, descend(given, numbers=numbers)[0], rtol=1e-5, atol=1e-5)


def _some(given: Regressions, some: slice) -> dict[str, Tensor]:
    tables = {name: getattr(given, name)[..., some] for name in ("targets", "weights", "offsets")}
    return {"rows": given.rows[:, some], **tables}


def test_a_descent_ends_where_it_would_never_be_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _hard()
    steps = []
    step = head_descent._step
    monkeypatch.setattr(head_descent, "_step", lambda *each: (steps.append(1), step(*each))[1])
    solved, _ = descend(given._replace(tolerance=0 * given.tolerance), numbers=False)
    assert len(steps) == 400
    assert solved.isfinite().all()

"""Whoever shares a cohort with a profile, it is tuned as it is alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_tuning.cohort import Cohort
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.errors import Unservable
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.trainee import Trainee, enrol

MakeDataset = Callable[..., Dataset]
QUICK: dict[str, Any] = {"epochs": 2, "batch_rows": 4, "head_penalty": 1.0}


class _Outcome(NamedTuple):
    """What became of a profile. learned: logits, LN affine, head weight and bias in float32."""

    learned: list[Tensor]
    profile: Profile | None
    epoch: int
    failure: Unservable | None


def _tuned(
    plm: Plm, bank: Bank, datasets: Mapping[str, Dataset], places: int, **settings: object
) -> dict[str, _Outcome]:
    """Whoever finds no place waits for one, as in `tune_profiles`."""
    chosen = TuningSettings(**(QUICK | settings))
    waiting = [enrol(plm, name, dataset, dataset.labels, chosen) for name, dataset in datasets.items()]
    cohort = Cohort(plm, bank, chosen, places=places, classes=max(len(each.labels) for each in waiting))
    outcomes: dict[str, _Outcome] = {}
    while waiting or cohort.trainees:
        entering, waiting = waiting[: cohort.free], waiting[cohort.free :]
        cohort.admit(entering)
        for trainee in cohort.step():
            assert trainee.name not in outcomes
            best = trainee.best
            outcomes[trainee.name] = _Outcome(_learned(cohort, trainee), best.profile, best.epoch, trainee.failure)
    assert cohort.free == places
    assert set(outcomes) == set(datasets)
    return outcomes


def _learned(cohort: Cohort, trainee: Trainee) -> list[Tensor]:
    here = torch.tensor([trainee.place])
    leaves = cohort._stack.leaves(here)
    head = cohort._stack.head(here, leaves)
    return [*(each[0].detach() for each in leaves[:3]), *(each[0, : len(trainee.labels)].detach() for each in head)]


def _alone(plm: Plm, bank: Bank, datasets: Mapping[str, Dataset], **settings: object) -> dict[str, _Outcome]:
    return {name: _tuned(plm, bank, {name: each}, 1, **settings)[name] for name, each in datasets.items()}


def _assert_same(found: _Outcome, wanted: _Outcome) -> None:
    """The same choices, the same kept epoch, and numbers within some roundings of each other."""
    assert found.profile is not None
    assert wanted.profile is not None
    assert found.epoch == wanted.epoch
    if found.profile.hard:
        assert np.array_equal(found.profile.mask_a, wanted.profile.mask_a)
        assert np.array_equal(found.profile.mask_b, wanted.profile.mask_b)
    for mine, theirs in zip(found.learned, wanted.learned, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=3e-6)


@pytest.fixture(scope="module")
def ragged(make_dataset: MakeDataset) -> dict[str, Dataset]:
    """Six tasks of 2 to 5 labels, 4 to 33 rows, and texts of 3 to 12 words; the last one's rows fit in one step."""
    return {
        "ann": make_dataset(7, ("x", "y"), seed=1),
        "bob": make_dataset(23, tuple("lmnop"), seed=2, words=9),
        "cid": make_dataset(33, seed=3),
        "dot": make_dataset(12, ("x", "y"), seed=4, words=12),
        "eve": make_dataset(28, tuple("pqrs"), seed=5, words=3),
        "fay": make_dataset(4, ("x", "y"), seed=6),
    }


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> defaultdict[str, list[list[int]]]:
    """Which rows each profile's steps took."""
    rows: defaultdict[str, list[list[int]]] = defaultdict(list)
    next_rows = Trainee.next_rows

    def noted(trainee: Trainee) -> NDArray[np.int64]:
        found = next_rows(trainee)
        rows[trainee.name].append(found.tolist())
        return found

    monkeypatch.setattr(Trainee, "next_rows", noted)
    return rows


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kind": "soft", "lr_head": 0.01},
        {"gumbel": 1.0, "temperature": 2.0, "last_temperature": 0.5, "class_weights": "balanced"},
        {"batch_tokens": 40},
    ],
    ids=["hard", "soft", "noisy", "in parts"],
)
def test_a_profile_is_tuned_among_strangers_as_it_is_alone(
    plm: Plm,
    bank: Bank,
    ragged: dict[str, Dataset],
    taken: defaultdict[str, list[list[int]]],
    settings: dict[str, object],
) -> None:
    """Also those that come late because there are fewer places than profiles.

    Not bit for bit: what it shares a pass with decides to which length attention and adapters are padded, and so in
    which order their products are added up.
    """
    alone = _alone(plm, bank, ragged, **settings)
    rows = dict(taken)
    assert all(rows.values())
    for places in (2, 3, 5):
        taken.clear()
        together = _tuned(plm, bank, ragged, places, **settings)
        assert taken == rows
        for name in ragged:
            _assert_same(together[name], alone[name])


def test_one_place_gives_everyone_the_bits_that_being_alone_gives(
    plm: Plm, bank: Bank, ragged: dict[str, Dataset]
) -> None:
    """Labels of nobody here change nothing either."""
    queue, alone = _tuned(plm, bank, ragged, 1, epochs=2), _alone(plm, bank, ragged, epochs=2)
    for name, outcome in queue.items():
        for mine, theirs in zip(outcome.learned, alone[name].learned, strict=True):
            assert torch.equal(mine, theirs)
        assert outcome.profile is not None
        assert alone[name].profile is not None
        assert outcome.profile.version == alone[name].profile.version


def test_a_step_in_parts_learns_what_a_whole_step_learns(plm: Plm, bank: Bank, ragged: dict[str, Dataset]) -> None:
    """The noise is a step's, not a part's."""
    settings = {"gumbel": 1.0, "batch_rows": 16, "epochs": 2}
    whole = _tuned(plm, bank, ragged, 5, **settings)
    for tokens in (1, 30, 100):
        parts = _tuned(plm, bank, ragged, 5, batch_tokens=tokens, **settings)
        for name in ragged:
            _assert_same(parts[name], whole[name])


def test_numbers_and_labels_can_be_learned_side_by_side(plm: Plm, bank: Bank, ragged: dict[str, Dataset]) -> None:
    rows = ragged["cid"].examples
    numbers = [Example(row.text, float(len(str(row.label)) + place % 3)) for place, row in enumerate(rows)]
    mixed = {"cid": ragged["cid"], "num": Dataset(tuple(numbers), ("value",)), "bob": ragged["bob"]}
    alone, together = _alone(plm, bank, mixed), _tuned(plm, bank, mixed, 3)
    for name in mixed:
        _assert_same(together[name], alone[name])


def test_a_profile_that_cannot_be_served_leaves_and_disturbs_nobody(
    plm: Plm, bank: Bank, ragged: dict[str, Dataset]
) -> None:
    """Millions are beyond float16, and 1e30 squared is no number in float32 any more."""
    rows = ragged["cid"].examples
    spoilt = {
        name: Dataset(tuple(Example(row.text, scale * (place % 4)) for place, row in enumerate(rows)), ("value",))
        for name, scale in (("millions", 1e6), ("huge", 1e30))
    }
    company = {"ann": ragged["ann"], **spoilt, "bob": ragged["bob"], "eve": ragged["eve"]}
    alone = _alone(plm, bank, {name: ragged[name] for name in ("ann", "bob", "eve")})
    together = _tuned(plm, bank, company, 4)
    for name, outcome in together.items():
        if name in spoilt:
            assert outcome.profile is None
            assert isinstance(outcome.failure, Unservable)
        else:
            assert outcome.failure is None
            _assert_same(outcome, alone[name])

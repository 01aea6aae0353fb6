"""Every method for users that bank training has never seen, from the rows to the cell, over a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from xpeft_profiles import Profile
from xpeft_quality import user_methods
from xpeft_quality.cell import Cell
from xpeft_quality.data_sets import UserSet
from xpeft_quality.measurement import measure
from xpeft_quality.progress import Show
from xpeft_quality.user_methods import USER_METHODS, Kept
from xpeft_server.model.banks.file import read_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm, load_plm
from xpeft_tuning.dataset import Dataset, Example, Split
from xpeft_tuning.mask_tuner import Tuned

LABELS = ("fresh", "rotten")
TRAIN, DEV, TEST = 13, 4, 7
GLOBAL = "one adapter for all"
MAJORITY = "majority of each user"


def _users(pairs: int, *, first: int, turned: bool = False) -> dict[str, Dataset]:
    """Pairs who read the same texts and never agree.

    Train and test rows have unequally many of each label. Args: turned: whether all but the train rows have the other.
    """
    users = {}
    splits: list[Split] = ["train"] * TRAIN + ["dev"] * DEV + ["test"] * TEST
    for number in range(first, first + pairs):
        rng = np.random.default_rng(number)
        topics = np.arange(len(splits)) % 2
        texts = [" ".join(f"w{word}" for word in rng.integers(10 * topic, 10 * topic + 10, 6)) for topic in topics]
        for name, taste in (("pro", 0), ("contra", 1)):
            rows = [
                Example(text, LABELS[topic ^ taste ^ (turned and split != "train")], None, split)
                for text, topic, split in zip(texts, topics, splits, strict=True)
            ]
            users[f"{name}-{number}"] = Dataset(tuple(rows), LABELS)
    return users


class _Runs(NamedTuple):
    """Of all methods, one after the other. Args: trainings: of banks, one after the other."""

    set: str
    cells: dict[str, dict[str, Cell]]
    profiles: dict[str, dict[str, Profile]]
    trainings: list[str]
    banks: dict[str, bytes]


def _run_all(plm: Plm, users: UserSet, folder: Path, show: Show) -> _Runs:
    cells, profiles, trainings = {}, {}, []
    tune_profiles = user_methods.tune_profiles

    def noted(*arguments: Any, **more: Any) -> Iterator[Any]:
        for outcome in tune_profiles(*arguments, **more):
            assert isinstance(outcome, Tuned)
            profiles[method][outcome.name] = outcome.result.profile
            yield outcome

    def counted(trainer: type[Any]) -> Any:
        def make(*arguments: Any) -> Any:
            trainings.append(trainer.__name__)
            return trainer(*arguments)

        return make

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_methods, "tune_profiles", noted)
        for trainer in (user_methods.WarmStart, user_methods.Branches):
            patch.setattr(user_methods, trainer.__name__, counted(trainer))
        for method in USER_METHODS:
            profiles[method] = {}
            found = measure(plm, users, method, 0, kept=Kept(folder), show=show, context={})
            cells[method] = {cell.method: cell for cell in found}
    return _Runs(users.name, cells, profiles, trainings, {path.name: path.read_bytes() for path in folder.iterdir()})


_SEEN = {"critics": 50, "movielens_like": 3}
"""Pairs of users who train banks: branches need as many users as adapters."""


@pytest.fixture(scope="module", params=list(_SEEN))
def users(request: pytest.FixtureRequest) -> UserSet:
    return UserSet(request.param, _users(_SEEN[request.param], first=0), _users(3, first=100))


@pytest.fixture(scope="module")
def straight(plm: Plm, users: UserSet, show: Show, tmp_path_factory: pytest.TempPathFactory) -> _Runs:
    return _run_all(plm, users, tmp_path_factory.mktemp("banks"), show)


@pytest.fixture(scope="module")
def turned(plm: Plm, users: UserSet, show: Show, tmp_path_factory: pytest.TempPathFactory) -> _Runs:
    """Rows of the unseen that nothing may be learned from have the other label."""
    others = replace(users, unseen=_users(3, first=100, turned=True))
    return _run_all(plm, others, tmp_path_factory.mktemp("banks"), show)


@pytest.mark.parametrize("method", USER_METHODS)
def test_a_method_gives_a_cell_of_its_name_over_all_unseen_users_test_rows(straight: _Runs, method: str) -> None:
    cells = straight.cells[method]
    assert list(cells) == [method, *([] if method == GLOBAL else [MAJORITY])]
    for cell in cells.values():
        assert (cell.set, cell.seed, cell.details) == (straight.set, 0, {"users": 6, "rows": 6 * TEST})


def test_one_adapter_for_all_is_right_for_one_of_two_who_never_agree(straight: _Runs) -> None:
    assert straight.cells[GLOBAL][GLOBAL].value == 0.5


@pytest.mark.parametrize("method", [each for each in USER_METHODS if each != GLOBAL])
def test_a_method_that_learns_from_the_users_own_rows_knows_both(straight: _Runs, method: str) -> None:
    cells = straight.cells[method]
    assert cells[method].value > 0.9
    # Of a user's train rows (7 to 6) most are of the first topic, of the test rows 3 of 7 are.
    assert cells[MAJORITY].value == pytest.approx(3 / 7)
    labels = [
        Counter(row.label for row in each.examples if row.split == "train") for each in _users(1, first=100).values()
    ]
    assert [sorted(each.values()) for each in labels] == [[6, 7], [6, 7]]


@pytest.mark.parametrize("method", USER_METHODS)
def test_dev_and_test_rows_of_the_unseen_teach_nothing(straight: _Runs, turned: _Runs, method: str) -> None:
    before, after = straight.cells[method], turned.cells[method]
    assert {name: cell.value for name, cell in after.items()} == {
        name: pytest.approx(1 - cell.value) for name, cell in before.items()
    }
    versions = [{name: each.version for name, each in runs.profiles[method].items()} for runs in (straight, turned)]
    assert versions[0] == versions[1]
    assert straight.banks == turned.banks


def test_a_bank_is_trained_once_for_all_methods_that_share_it(straight: _Runs) -> None:
    many = "Branches" if straight.set == "critics" else "WarmStart"
    assert straight.trainings == ["WarmStart", many]
    assert set(straight.banks) == {f"{straight.set}-{what}-float32-0.safetensors" for what in ("adapter", "bank")}


def test_a_bank_is_trained_for_each_number_format_of_the_language_model(
    tiny_bert: Path, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    class Trainer:
        def __init__(self, plm: Plm, *_: object) -> None:
            self._plm = plm

        def train(self, _: object) -> SimpleNamespace:
            trained.append(self._plm.dtype)
            return SimpleNamespace(bank=open_bank(f"random:N=1,R=4,seed={len(trained)},std=0.1", self._plm.facts))

    monkeypatch.setattr(user_methods, "WarmStart", Trainer)
    users = UserSet("critics", {}, {})
    plms = [load_plm(str(tiny_bert), dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    banks = [user_methods._adapter_of_all(plm, users, 0, Kept(tmp_path), show).fingerprint for plm in [*plms, *plms]]
    assert trained == [torch.float32, torch.bfloat16]
    assert banks[:2] == banks[2:]
    assert banks[0] != banks[1]


def test_the_bank_begins_at_the_one_adapter(straight: _Runs, tmp_path: Path) -> None:
    banks = {}
    for name, data in straight.banks.items():
        (tmp_path / name).write_bytes(data)
        banks[name.split("-")[1]] = read_bank_file(tmp_path / name)
    assert (banks["adapter"].adapters, banks["bank"].adapters) == (1, 100)
    assert json.loads(banks["adapter"].provenance)["start"] is None
    assert json.loads(banks["bank"].provenance)["start"] == banks["adapter"].fingerprint


@pytest.mark.parametrize("method", [each for each in USER_METHODS if each != GLOBAL])
def test_a_method_tunes_what_its_name_says_for_each_user(straight: _Runs, method: str) -> None:
    profiles = straight.profiles[method]
    assert len({each.version for each in profiles.values()}) == 6
    for profile in profiles.values():
        assert profile.mask_a.shape == (2, 100 if "N=100" in method else 1)
        assert profile.hard == ("soft" not in method)
        assert profile.labels == LABELS
        affine_moves = not np.array_equal(np.asarray(profile.ln_weight), np.ones_like(profile.ln_weight))
        assert affine_moves == (method != "one adapter for all, a head each")


def test_no_two_methods_make_the_same_profile(straight: _Runs) -> None:
    made = [profiles["pro-100"].version for method, profiles in straight.profiles.items() if method != GLOBAL]
    assert len(set(made)) == len(made) == len(USER_METHODS) - 1

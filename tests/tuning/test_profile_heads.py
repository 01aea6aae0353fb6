from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Dataset
from xpeft_tuning.mask_tuner import tune_profile
from xpeft_tuning.settings import TuningSettings

MakeDataset = Callable[..., Dataset]
FEW: dict[str, Any] = {"epochs": 2, "head_penalty": 1.0}
STILL: dict[str, Any] = {"lr_masks": 0.0, "lr_norm": 0.0, "lr_head": 0.0}


def test_a_shared_head_is_named_and_not_brought(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    shared, dataset = _with_head(bank, make_dataset)
    tuned = tune_profile(plm, shared, dataset, TuningSettings(**FEW, shared_head="x"))
    assert (tuned.profile.shared_head, tuned.profile.labels, tuned.profile.head_weight) == ("x", None, None)
    assert tuned.head_alone is None
    tuned.profile.check_fits(shared.geometry)


def test_a_head_beside_a_shared_one_starts_as_that(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    """All rates at zero, and nothing but the penalty to fit."""
    shared, dataset = _with_head(bank, make_dataset)
    settings = TuningSettings(epochs=1, shared_head="x", own_head=True, head_penalty=1e9, **STILL)
    profile = tune_profile(plm, shared, dataset, settings).profile
    assert profile.head_weight is not None
    assert (profile.labels, profile.shared_head) == (shared.heads["x"].labels, None)
    halves = shared.heads["x"].weight.half().numpy()
    np.testing.assert_array_max_ulp(profile.head_weight, halves, maxulp=1)


def test_the_penalty_draws_an_own_head_to_the_shared_one(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    shared, dataset = _with_head(bank, make_dataset)
    away = []
    for penalty in (0.1, 10.0, 1000.0):
        settings = TuningSettings(epochs=4, shared_head="x", own_head=True, head_penalty=penalty, lr_head=0.01)
        profile = tune_profile(plm, shared, dataset, settings).profile
        assert profile.head_weight is not None
        away.append(np.linalg.norm(profile.head_weight - shared.heads["x"].weight.numpy()))
    assert away[0] > 2 * away[1] > 4 * away[2]


def test_the_penalty_draws_an_own_head_to_zero(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    sizes = []
    for penalty in (0.1, 10.0, 1000.0):
        settings = TuningSettings(epochs=4, head_penalty=penalty, lr_head=0.01)
        profile = tune_profile(plm, bank, make_dataset(30), settings).profile
        assert profile.head_weight is not None
        sizes.append(np.linalg.norm(profile.head_weight))
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2]


def _with_head(bank: Bank, make_dataset: MakeDataset) -> tuple[Bank, Dataset]:
    """A shared head ``x`` of four labels in another order than the data's three."""
    weight = torch.randn(4, bank.hidden, generator=torch.Generator().manual_seed(3))
    head = SharedHead(weight, torch.zeros(4), ("blue", "white", "red", "green"))
    return replace(bank, heads={"x": head}), make_dataset(30)

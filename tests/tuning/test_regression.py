from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotFill
from xpeft_tuning.dataset import Dataset
from xpeft_tuning.errors import DatasetInvalid, TuningSettingsInvalid, Unservable
from xpeft_tuning.mask_tuner import tune_profile
from xpeft_tuning.settings import TuningSettings

MakeDataset = Callable[..., Dataset]
FEW: dict[str, Any] = {"epochs": 2, "head_penalty": 1.0}


def _served_values(plm: Plm, bank: Bank, profile: Profile, texts: list[str]) -> NDArray[np.float32]:
    """``[Q, C]``."""
    classifier, own = Classifier(plm, bank, slots=1, head_rows=1), np.arange(1)
    classifier.fill([SlotFill(0, profile, own)])
    encoded = plm.tokenizer.encode([(text, None) for text in texts])
    return np.stack(classifier.logits([ClassifierInput(text, 0, own) for text in encoded]))


def test_a_linear_function_is_learned_from_numbers_and_served_as_it_was_scored(
    plm: Plm, bank: Bank, linear: Dataset
) -> None:
    tuned = tune_profile(plm, bank, linear, TuningSettings(epochs=3))
    assert tuned.held_out is not None
    assert tuned.held_out.correlation is not None
    assert tuned.held_out.correlation > 0.9
    assert (tuned.held_out.accuracy, tuned.majority) == (None, None)
    assert tuned.head_alone is not None
    assert tuned.head_alone.correlation is not None
    assert tuned.profile.labels == ("value",)
    assert tuned.profile.head_weight is not None
    assert tuned.profile.head_weight.shape == (1, bank.hidden)
    rows = [row for row in linear.examples if row.split == "test"]
    values = _served_values(plm, bank, tuned.profile, [row.text for row in rows])
    wanted = np.array([row.label for row in rows], np.float64)
    assert values.shape == (40, 1)
    assert np.corrcoef(values[:, 0], wanted)[0, 1] == pytest.approx(tuned.held_out.correlation, abs=1e-6)
    assert np.mean((values[:, 0] - wanted) ** 2) == pytest.approx(tuned.held_out.loss, rel=1e-5)


def test_numbers_may_have_a_name_and_a_shared_head(plm: Plm, bank: Bank, linear: Dataset) -> None:
    named = replace(linear, labels=("stars",))
    assert tune_profile(plm, bank, named, TuningSettings(**FEW)).profile.labels == ("stars",)
    head = SharedHead(torch.zeros(1, bank.hidden), torch.tensor([3.0]), ("stars",))
    shared = replace(bank, heads={"x": head})
    tuned = tune_profile(plm, shared, named, TuningSettings(**FEW, shared_head="x"))
    assert (tuned.profile.shared_head, tuned.profile.labels) == ("x", None)
    with pytest.raises(DatasetInvalid, match="label 'value' is not one of shared head 'x'"):
        tune_profile(plm, shared, linear, TuningSettings(shared_head="x"))


def test_numbers_have_no_accuracy_to_stop_on_but_a_loss(plm: Plm, bank: Bank, linear: Dataset) -> None:
    with pytest.raises(TuningSettingsInvalid, match="stop_on is 'accuracy', but the task is to regress"):
        tune_profile(plm, bank, linear, TuningSettings(stop_on="accuracy"))
    assert tune_profile(plm, bank, linear, TuningSettings(**FEW, stop_on="loss")).epoch <= 2


def test_numbers_have_no_labels_to_balance(plm: Plm, bank: Bank, linear: Dataset) -> None:
    with pytest.raises(TuningSettingsInvalid, match="class_weights is 'balanced', but the task is to regress"):
        tune_profile(plm, bank, linear, TuningSettings(class_weights="balanced"))


def test_numbers_beyond_float16_make_no_profile(plm: Plm, bank: Bank, linear: Dataset) -> None:
    rows = tuple(replace(row, label=1e6 * float(row.label)) for row in linear.examples)
    with pytest.raises(Unservable, match=r"what was learned makes no profile: head\.\w+: .* beyond float16's range"):
        tune_profile(plm, bank, replace(linear, examples=rows), TuningSettings(**FEW))

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from xpeft_tuning.bank_training.settings import BankTrainingSettings, Method
from xpeft_tuning.errors import TuningSettingsInvalid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, "activation is 'tanh', it must be relu or gelu"),
        ({"pooling": "max"}, "pooling is 'max', it must be mean or cls or last"),
        ({"adapters": 0}, "adapters is 0, it must be from 1 to 1024"),
        ({"width": 257}, "width is 257, it must be from 1 to 256"),
        ({"k": 0}, "k is 0, it must be from 1 to 100"),
        ({"adapters": 8, "k": 9}, "k is 9, it must be from 1 to 8"),
        ({"seed": -1}, "seed is -1, it must be from 0 to"),
        *(
            ({name: 0}, f"{name} is 0, it must be from 1 to")
            for name in ("epochs", "batch_tokens", "batch_users", "user_rows", "batch_rows")
        ),
        *(
            ({name: value}, f"{name} is {value}, it must be a number from 0 up")
            for name in ("lr_bank", "lr_head", "weight_decay", "std_down", "std_up", "consistency")
            for value in (-0.5, float("nan"), float("inf"))
        ),
        *(
            ({name: -1.0}, f"{name} is -1.0, it must be a number from 0 up")
            for name in ("lr_masks", "lr_norm", "lr_own_head", "own_head_penalty", "gumbel")
        ),
        *(
            ({"dropout": value}, f"dropout is {value}, it must be from 0 up and below 1")
            for value in (-0.1, 1.0, float("nan"))
        ),
    ],
)
def test_an_impossible_setting_is_refused_by_name_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TuningSettingsInvalid) as refused:
        BankTrainingSettings(**changes)
    assert str(refused.value).startswith(message)


def test_every_setting_is_described_and_is_of_methods_that_there_are() -> None:
    for setting in fields(BankTrainingSettings):
        assert setting.metadata["help"]
        assert set(setting.metadata.get("methods", ())) <= set(get_args(Method))


def test_the_least_and_the_most_are_taken() -> None:
    BankTrainingSettings(adapters=1, width=1, k=1, epochs=1, batch_tokens=1, lr_bank=0, std_up=0, consistency=0)
    BankTrainingSettings(adapters=1024, width=256, k=1024, seed=2**63 - 1)

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from xpeft_server.model.banks.bank import Bank
from xpeft_tuning.errors import TuningSettingsInvalid
from xpeft_tuning.settings import TuningSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "firm"),
        ("k", 0),
        ("k", 10**400),
        ("epochs", 0),
        ("batch_rows", 0),
        ("batch_tokens", -1),
        ("lr_masks", -0.1),
        ("lr_norm", float("nan")),
        ("lr_head", float("inf")),
        ("head_penalty", -1.0),
        ("mask_spread", -0.1),
        ("gumbel", -0.5),
        ("temperature", float("nan")),
        ("last_temperature", -1.0),
        ("class_weights", "even"),
        ("held_out", 1.0),
        ("stop_on", "luck"),
        ("patience", 0),
        ("patience", 2**31),
        ("seed", -1),
    ],
)
def test_an_impossible_setting_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(TuningSettingsInvalid, match=f"^{name} is {value!r}, it must be"):
        TuningSettings(**{name: value})


@pytest.mark.parametrize("value", [0.0, 1e-42])
@pytest.mark.parametrize("name", ["temperature", "last_temperature"])
def test_no_temperature_makes_logits_that_are_no_numbers(name: str, value: float) -> None:
    with pytest.raises(TuningSettingsInvalid, match=rf"^{name} is {value}, it must be at least 0\.001$"):
        TuningSettings(**{name: value})  # type: ignore[arg-type]


def test_soft_masks_choose_no_k() -> None:
    with pytest.raises(TuningSettingsInvalid, match=r"^k is 5, but soft masks choose none"):
        TuningSettings(kind="soft", k=5)


def test_a_description_that_no_profile_can_hold_is_refused_by_name_length_and_limit() -> None:
    TuningSettings(description="ü" * 512)
    with pytest.raises(TuningSettingsInvalid, match=r"^description: 'ü+.* has 1026 bytes, at most 1024 are allowed$"):
        TuningSettings(description="ü" * 513)
    with pytest.raises(TuningSettingsInvalid, match=r"^description: .* is not valid Unicode$"):
        TuningSettings(description="\ud800")


def test_every_setting_says_what_it_is() -> None:
    assert all(setting.metadata["help"] for setting in fields(TuningSettings))


def test_k_is_half_of_the_bank_unless_it_is_given() -> None:
    assert [TuningSettings().chosen(adapters) for adapters in (1, 8, 100)] == [1, 4, 50]
    assert TuningSettings(k=3).chosen(100) == 3


def test_temperature_goes_geometrically_from_the_first_to_the_last() -> None:
    settings = TuningSettings(temperature=2.0, last_temperature=0.125)
    assert [settings.temperature_at(share) for share in (0, 0.25, 0.5, 1)] == pytest.approx([2, 1, 0.5, 0.125])


def test_without_a_last_one_temperature_stays() -> None:
    assert {TuningSettings(temperature=0.7).temperature_at(share / 10) for share in range(11)} == {0.7}


@pytest.mark.parametrize(("shared", "own", "brings"), [(None, False, True), ("x", False, False), ("x", True, True)])
def test_a_profile_brings_a_head_unless_a_shared_one_is_used_as_it_is(
    shared: str | None, own: bool, brings: bool
) -> None:
    assert TuningSettings(shared_head=shared, own_head=own).has_own_head is brings


def test_what_the_bank_has_not_is_refused(bank: Bank) -> None:
    with pytest.raises(TuningSettingsInvalid, match="k is 9, the bank has N=8 adapters to choose from"):
        TuningSettings(k=9).check_fits(bank.adapters, bank.heads)
    with pytest.raises(TuningSettingsInvalid, match="shared_head is 'x', the bank's heads are: none"):
        TuningSettings(shared_head="x").check_fits(bank.adapters, bank.heads)
    TuningSettings(shared_head="x", k=8).check_fits(bank.adapters, ("x",))

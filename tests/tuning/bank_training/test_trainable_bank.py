from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_parts import BankParts
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.bank_training.trainable_bank import TrainableBank, share_of_rate
from xpeft_tuning.errors import TuningSettingsInvalid
from xpeft_tuning.evaluation import Score

LABELS = ("a", "b", "c")
Small = Callable[..., BankTrainingSettings]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"biases": True, "activation": "gelu"},
        {"biases": True, "share_up": True},
        {"layer_norm": False, "pooling": "cls", "head": "mood.1"},
    ],
)
def test_the_bank_is_what_the_settings_ask_for(plm: Plm, small: Small, changes: dict[str, Any]) -> None:
    settings = small(width=3, **changes)
    bank = TrainableBank(plm, LABELS, settings).bank("made by a test")
    assert (bank.down.shape, bank.up.shape) == ((2, 4, 32, 3), (2, 4, 3, 32))
    assert (bank.activation, bank.layer_norm) == (settings.activation, settings.layer_norm)
    assert (bank.pooling, bank.pooling_by_default) == (settings.pooling or "mean", False)
    assert (bank.plm, bank.provenance) == (plm.facts.fingerprint, "made by a test")
    head = bank.heads[settings.head]
    assert head.labels == LABELS
    assert not head.weight.any()
    assert not head.bias.any()
    if settings.biases:
        assert bank.down_bias is not None
        assert bank.up_bias is not None
        assert not bank.down_bias.any()
        assert not bank.up_bias.any()
    else:
        assert (bank.down_bias, bank.up_bias) == (None, None)


def test_parts_are_the_banks_rows_in_the_operators_order(plm: Plm, small: Small) -> None:
    made = TrainableBank(plm, LABELS, small(biases=True))
    with torch.no_grad():
        for number, each in enumerate((made._down, made._up)):
            each.copy_(torch.arange(each.numel()).view_as(each) + number / 2)
    parts, read = made.parts, BankParts.of(made.bank(""), plm.device)
    assert torch.equal(parts.down, read.down)
    assert torch.equal(parts.up, read.up)


def test_adapters_start_with_the_spread_that_was_asked_for_and_the_seed_decides(plm: Plm, small: Small) -> None:
    first, again, other = (
        TrainableBank(plm, LABELS, small(adapters=64, width=8, seed=seed)).bank("") for seed in (3, 3, 4)
    )
    assert first.down.std().item() == pytest.approx(0.3, rel=0.01)
    assert first.up.std().item() == pytest.approx(0.1, rel=0.01)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_rates_rise_over_a_twentieth_of_the_steps_and_fall_to_nothing() -> None:
    shares = [share_of_rate(step / 1000) for step in range(1001)]
    peak = shares.index(max(shares))
    assert shares[0] == pytest.approx(0.02)
    assert peak == 49
    assert shares[peak] > 0.95
    assert shares[:peak] == sorted(shares[:peak])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert shares[525] == pytest.approx(0.475)
    assert shares[1000] == 0


def test_each_part_learns_at_its_own_rate(plm: Plm, small: Small) -> None:
    adam, schedule = TrainableBank(plm, LABELS, small(lr_bank=0.25, lr_head=0.5, weight_decay=0.1)).optimizer(40)
    assert [(group["weight_decay"], len(group["params"])) for group in adam.param_groups] == [(0.1, 2), (0.0, 2)]
    for step in range(40):
        assert [group["lr"] for group in adam.param_groups] == [
            pytest.approx(rate * share_of_rate(step / 40)) for rate in (0.25, 0.5)
        ]
        adam.step()
        schedule.step()


@pytest.mark.parametrize(
    ("head", "labels"), [("a/b", LABELS), ("", LABELS), ("shared", ("a", "")), ("shared", ("a", "a"))]
)
def test_a_head_that_no_bank_can_have_is_refused_before_anything_is_learned(
    plm: Plm, small: Small, head: str, labels: tuple[str, ...]
) -> None:
    with pytest.raises(BankInvalid, match=f"shared head {head!r}"):
        TrainableBank(plm, labels, small(head=head))


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_training_by_name(plm: Plm, small: Small, loss: float) -> None:
    bank = TrainableBank(plm, LABELS, small(lr_bank=7.0))
    bank.check_step(1e30, 1, 1)
    bank.check_epoch(1, Score(1e30, 5))
    bank.check_epoch(1, None)
    with pytest.raises(TuningSettingsInvalid) as refused:
        bank.check_step(loss, 2, 31)
    assert str(refused.value) == (
        f"lr_bank is 7.0, and the loss of step 31 in epoch 2 is {loss}: try a lower one (--lr-bank)"
    )
    with pytest.raises(
        TuningSettingsInvalid, match=r"the loss on the held-out rows after epoch 2 is (nan|inf): try a lower"
    ):
        bank.check_epoch(2, Score(loss, 5))


@pytest.mark.parametrize(
    ("settings", "said", "hint"),
    [
        ({}, "lr_bank is 0.0005, and ", ": try a lower one (--lr-bank)"),
        ({"lr_head": 1e30}, "lr_head is 1e+30, and ", ": try a lower one (--lr-head)"),
        ({"lr_head": 1e30, "lr_bank": 0.05}, "lr_head is 1e+30, and ", ": try a lower one (--lr-head)"),
        (
            *({"lr_head": 0.04, "lr_bank": 0.05}, "lr_bank is 0.05, lr_head is 0.04, and "),
            ": try lower ones (--lr-bank, --lr-head)",
        ),
        ({"lr_norm": 1e30}, "lr_norm is 1e+30, and ", ": try a lower one (--lr-norm)"),
        ({"lr_masks": 1e30}, "lr_bank is 0.0005, and ", ": try a lower one (--lr-bank)"),
    ],
)
def test_what_is_furthest_above_its_default_is_blamed(plm: Plm, settings: dict[str, Any], said: str, hint: str) -> None:
    small = BankTrainingSettings(adapters=2, width=2, **settings)
    with pytest.raises(TuningSettingsInvalid) as refused:
        TrainableBank(plm, LABELS, small, others=("lr_norm",)).check_step(math.nan, 1, 2)
    assert str(refused.value) == f"{said}the loss of step 2 in epoch 1 is nan{hint}"


@pytest.mark.parametrize("part", ["_down", "_up", "head_weight", "head_bias"])
def test_values_that_are_not_finite_end_the_training_after_the_epoch(plm: Plm, small: Small, part: str) -> None:
    bank = TrainableBank(plm, LABELS, small())
    with torch.no_grad():
        getattr(bank, part).view(-1)[-1] = float("inf")
    with pytest.raises(
        TuningSettingsInvalid,
        match=r"lr_bank is 0\.01, lr_head is 0\.03, and after epoch 3 the bank has values that are no",
    ):
        bank.check_epoch(3, None)

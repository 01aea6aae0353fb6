from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_training.branches import Branches
from xpeft_tuning.bank_training.outcome import BankProgress
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.bank_training.warm_start import WarmStart
from xpeft_tuning.dataset import Dataset
from xpeft_tuning.errors import DataTooSmall, TuningSettingsInvalid

MakeTastes = Callable[..., dict[str, Dataset]]
Small = Callable[..., BankTrainingSettings]

_ALONE = {"lr_masks": 0.0, "lr_norm": 0.0, "lr_own_head": 0.0}


@pytest.fixture(scope="module")
def start(plm: Plm, make_tastes: MakeTastes, small: Small) -> Bank:
    """An adapter that all users share, with biases."""
    settings = small(adapters=1, biases=True, **_ALONE)
    return WarmStart(plm, make_tastes(4, train=16, test=0), settings).train().bank


def test_every_adapter_is_the_one_that_its_users_alone_would_make_of_the_start(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    users = make_tastes(4, train=16, test=2)
    settings = small(adapters=3, biases=True, dropout=0.1, **_ALONE)
    trainer = Branches(plm, users, settings, start)
    bank = trainer.train().bank
    parts = trainer._parts
    assert sorted(place for part in parts for place in part) == list(range(8))
    assert {len(part) for part in parts} == {2, 3}
    for number, part in enumerate(parts):
        theirs = {name: each for place, (name, each) in enumerate(users.items()) if place in part}
        alone = replace(settings, adapters=1, lr_head=0.0, seed=settings.seed + number)
        wanted = WarmStart(plm, theirs, alone, start).train().bank
        for name, tensor in bank.adapter_tensors().items():
            assert torch.equal(tensor[:, number : number + 1], wanted.adapter_tensors()[name])
            assert not torch.equal(wanted.adapter_tensors()[name], start.adapter_tensors()[name])


def test_the_shared_head_stays_and_the_bank_is_the_starts_in_all_else(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    trained = Branches(plm, make_tastes(4, train=8, test=2), small(adapters=4, biases=True), start).train()
    bank = trained.bank
    assert (bank.adapters, bank.width, bank.plm, bank.pooling) == (4, start.width, start.plm, start.pooling)
    assert torch.equal(bank.heads["shared"].weight, start.heads["shared"].weight)
    assert bank.heads["shared"].labels == start.heads["shared"].labels
    told: Mapping[str, Any] = json.loads(bank.provenance)
    assert (told["method"], told["start"], told["settings"]["adapters"]) == ("branches", start.fingerprint, 4)
    assert trained.held_out is not None
    assert told["held_out"]["loss"] == trained.held_out.loss
    assert (trained.rows, trained.held_out.rows, trained.skipped) == (64, 16, 0)


def test_the_score_is_that_of_the_branches_average(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    users = make_tastes(2, train=8, test=6)
    trained = Branches(plm, users, small(adapters=4, biases=True, lr_bank=0.05, **_ALONE), start).train()
    mean = {name: tensor.mean(dim=1, keepdim=True) for name, tensor in trained.bank.adapter_tensors().items()}
    merged = WarmStart(plm, users, small(adapters=1, biases=True, **_ALONE), replace(trained.bank, **mean)).score()
    assert merged is not None
    assert trained.held_out is not None
    assert trained.held_out.loss == pytest.approx(merged.loss, rel=1e-4)


def test_a_start_of_several_adapters_is_taken_one_after_the_other(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    two: dict[str, Tensor] = {
        name: torch.cat([tensor, 2 * tensor], dim=1) for name, tensor in start.adapter_tensors().items()
    }
    settings = small(adapters=3, biases=True, lr_bank=0.0)
    bank = Branches(plm, make_tastes(2, train=8, test=0), settings, replace(start, **two)).train().bank
    for name, tensor in bank.adapter_tensors().items():
        assert torch.equal(tensor, two[name][:, [0, 1, 0]])


def test_every_step_is_told_branches_in_the_place_of_epochs(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    seen: list[BankProgress] = []
    settings = small(adapters=2, biases=True, epochs=2, batch_users=1, user_rows=8)
    Branches(plm, make_tastes(2, train=8, test=2), settings, start).train(seen.append)
    assert [(each.epoch, each.step) for each in seen] == [(b, s) for b in (1, 2) for s in range(1, 5)]
    assert {(each.epochs, each.steps, each.score) for each in seen} == {(2, 4, None)}


def test_users_who_give_one_label_alone_have_a_branch_too(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    users = make_tastes(1, train=8, test=2)
    monotone = replace(
        users["pro-0"],
        examples=tuple(row for row in users["pro-0"].examples if row.label == "yes" and row.split == "train"),
    )
    guest = replace(users["pro-0"], examples=users["pro-0"].examples[8:])
    settings = small(adapters=2, biases=True)
    trained = Branches(plm, {"guest": guest, "a": monotone, "b": users["contra-0"]}, settings, start).train()
    assert (trained.bank.adapters, trained.rows, trained.skipped) == (2, 12, 1)


def test_what_cannot_branch_is_refused_before_anything_else(
    plm: Plm, make_tastes: MakeTastes, small: Small, start: Bank
) -> None:
    users = make_tastes(1, train=4, test=0)
    with pytest.raises(TuningSettingsInvalid, match="adapters is 3, and 2 users have train rows"):
        Branches(plm, users, small(adapters=3, biases=True), start)
    with pytest.raises(BankInvalid, match="has no head 'other'"):
        Branches(plm, users, small(adapters=2, biases=True, head="other"), start)
    with pytest.raises(BankInvalid, match="biases is False, and the bank to start from has True"):
        Branches(plm, users, small(adapters=2), start)
    turned = {name: replace(each, labels=("no", "yes")) for name, each in users.items()}
    with pytest.raises(BankInvalid, match="has the labels"):
        Branches(plm, turned, small(adapters=2, biases=True), start)
    with pytest.raises(DataTooSmall, match="there are no train rows"):
        Branches(plm, {}, small(adapters=2, biases=True), start)

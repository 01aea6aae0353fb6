from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_training.mixture import MixtureTrainer
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.bank_training.trainable_bank import TrainableBank
from xpeft_tuning.bank_training.warm_start import WarmStart
from xpeft_tuning.dataset import Dataset

LABELS = ("a", "b", "c")
Small = Callable[..., BankTrainingSettings]


def _trained(plm: Plm, settings: BankTrainingSettings, seed: int = 5) -> Bank:
    """Something that no training begins with."""
    made = TrainableBank(plm, LABELS, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in (made._down, made._up, made.head_weight, made.head_bias):
            each.copy_(torch.randn(each.shape, generator=generator))
    return made.bank("")


@pytest.mark.parametrize("changes", [{}, {"biases": True, "layer_norm": False, "activation": "gelu", "pooling": "cls"}])
def test_as_many_adapters_are_taken_as_they_are(plm: Plm, small: Small, changes: dict[str, Any]) -> None:
    start = _trained(plm, small(**changes))
    begun = TrainableBank(plm, LABELS, small(**{**changes, "pooling": None}, seed=9), start).bank("")
    assert begun.fingerprint == start.fingerprint


@pytest.mark.parametrize("biases", [False, True])
def test_fewer_adapters_are_repeated_and_their_weights_are_as_far_apart_as_is_asked(
    plm: Plm, small: Small, biases: bool
) -> None:
    start = _trained(plm, small(adapters=2, width=8, biases=biases))
    settings = small(adapters=5, width=8, biases=biases, start_apart=0.1)
    begun, again = (TrainableBank(plm, LABELS, settings, start).bank("") for _ in range(2))
    assert begun.fingerprint == again.fingerprint
    for name in ("down", "up"):
        there, here = getattr(start, name)[:, [0, 1, 0, 1, 0]], getattr(begun, name)
        apart = (here - there).std(dim=(2, 3)) / there.std(dim=(2, 3))
        torch.testing.assert_close(apart, torch.full_like(apart, 0.1), rtol=0.2, atol=0)
        assert (here[:, 0] - here[:, 2]).abs().max() > 0.01
        if biases:
            assert torch.equal(getattr(begun, f"{name}_bias"), getattr(start, f"{name}_bias")[:, [0, 1, 0, 1, 0]])
    for part in ("weight", "bias"):
        assert torch.equal(getattr(begun.heads["shared"], part), getattr(start.heads["shared"], part))


def test_a_shared_up_projection_begins_as_the_mean(plm: Plm, small: Small) -> None:
    start = _trained(plm, small())
    begun = TrainableBank(plm, LABELS, small(share_up=True), start).bank("")
    for number in range(begun.adapters):
        torch.testing.assert_close(begun.up[:, number], start.up.mean(dim=1))


def test_a_head_of_another_name_is_left_behind(plm: Plm, small: Small) -> None:
    start = _trained(plm, small())
    begun = TrainableBank(plm, ("x", "y"), small(head="mood"), start).bank("")
    assert not begun.heads["mood"].weight.any()
    assert list(begun.heads) == ["mood"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 5}, "width is 5, and the bank to start from has"),
        ({"activation": "gelu"}, "activation is gelu, and the bank to start from has relu"),
        ({"layer_norm": False}, "layer_norm is False, and the bank to start from has True"),
        ({"biases": True}, "biases is True, and the bank to start from has False"),
        ({"pooling": "cls"}, "pooling is cls, and the bank to start from has mean"),
        ({"adapters": 3}, "adapters is 3, and the bank to start from has 4"),
    ],
)
def test_what_does_not_fit_is_said(plm: Plm, small: Small, changes: dict[str, Any], said: str) -> None:
    start = _trained(plm, small())
    with pytest.raises(BankInvalid, match=said):
        TrainableBank(plm, LABELS, small(**changes), start)


def test_a_bank_of_another_model_or_with_other_labels_does_not_fit(plm: Plm, small: Small) -> None:
    start = _trained(plm, small())
    with pytest.raises(BankInvalid, match=r"is of the language model sha256:ffff.*, not"):
        TrainableBank(plm, LABELS, small(), replace(start, plm=f"sha256:{64 * 'f'}"))
    with pytest.raises(BankInvalid, match=r"the labels \['a', 'b', 'c'\], and the rows have \['b', 'a', 'c'\]"):
        TrainableBank(plm, ("b", "a", "c"), small(), start)


def test_only_one_of_the_biases_does_not_fit(plm: Plm, small: Small) -> None:
    start = replace(_trained(plm, small(biases=True)), up_bias=None)
    for biases in (False, True):
        with pytest.raises(BankInvalid, match=f"biases is {biases}, and the bank to start from has {not biases}"):
            TrainableBank(plm, LABELS, small(biases=biases), start)


@pytest.mark.parametrize("method", ["users", "mixture"])
def test_training_goes_on_from_there_and_says_so(
    plm: Plm, small: Small, make_dataset: Callable[..., Dataset], method: str
) -> None:
    dataset = make_dataset(24, LABELS)
    head = SharedHead(torch.randn(3, plm.facts.hidden), torch.randn(3), LABELS)
    start = replace(_trained(plm, small()), heads={"shared": head})
    still = small(epochs=1, lr_bank=0.0, lr_head=0.0, weight_decay=0.0)
    if method == "users":
        trained = WarmStart(plm, {"ann": dataset}, still, start).train()
    else:
        trained = MixtureTrainer(plm, dataset, still, start).train()
    assert trained.bank.fingerprint == start.fingerprint
    assert f'"start": "{start.fingerprint}"' in trained.bank.provenance

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.file import write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm
from xpeft_tuning.bank_training.mixture import MixtureTrainer
from xpeft_tuning.bank_training.outcome import BankProgress
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.bank_training.warm_start import WarmStart
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall, TuningSettingsInvalid
from xpeft_tuning.evaluation import score_logits
from xpeft_tuning.mask_tuner import Tuned, TuningTask, tune_profiles
from xpeft_tuning.row_batch import Pick, pack_rows
from xpeft_tuning.settings import TuningSettings

MakeTastes = Callable[..., dict[str, Dataset]]
Small = Callable[..., BankTrainingSettings]

_LEARNED = {"adapters": 8, "width": 8, "epochs": 12, "batch_users": 8, "lr_own_head": 0.0}


def ragged(make_tastes: MakeTastes) -> dict[str, Dataset]:
    """Users with 2, 3, 5 and 11 train rows, and two test rows each."""
    counts = {"pro-0": 2, "contra-0": 3, "pro-1": 5, "contra-1": 11}
    users = make_tastes(2, train=11, test=2)
    return {
        name: replace(users[name], examples=(*users[name].examples[:count], *users[name].examples[11:]))
        for name, count in counts.items()
    }


@pytest.fixture(scope="module")
def trained(plm: Plm, make_tastes: MakeTastes, small: Small) -> tuple[Bank, float]:
    """A bank of sixteen users who differ in nothing but their masks, and their accuracy on held-out rows."""
    found = WarmStart(plm, make_tastes(8, train=32, test=8), small(**_LEARNED)).train()
    assert found.held_out is not None
    assert found.held_out.accuracy is not None
    return found.bank, found.held_out.accuracy


def test_opposite_tastes_are_learned_by_masks_and_not_without_users(
    plm: Plm, make_tastes: MakeTastes, small: Small, trained: tuple[Bank, float]
) -> None:
    rows = tuple(chain.from_iterable(each.examples for each in make_tastes(8, train=32, test=8).values()))
    together = MixtureTrainer(
        plm, Dataset(rows, ("yes", "no")), small(**{**_LEARNED, "adapters": 1, "epochs": 4})
    ).train()
    assert together.held_out is not None
    assert together.held_out.accuracy == pytest.approx(0.5, abs=0.05)
    assert together.held_out.loss > 0.69
    assert trained[1] > 0.9


def test_unseen_users_do_better_over_the_trained_bank_than_over_a_random_one(
    plm: Plm, make_tastes: MakeTastes, trained: tuple[Bank, float]
) -> None:
    bank, _ = trained
    random = replace(open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts), heads=bank.heads)
    users = make_tastes(6, train=6, test=10, first=100)
    settings = TuningSettings(shared_head="shared", epochs=15, batch_rows=6)
    accuracy = {}
    for name, over in (("trained", bank), ("random", random)):
        tasks = [TuningTask(*each) for each in users.items()]
        outcomes = list(tune_profiles(plm, over, tasks, settings, places=12, classes=2))
        scores = [each.result.held_out for each in outcomes if isinstance(each, Tuned)]
        assert len(scores) == 12
        accuracy[name] = np.mean([score.accuracy for score in scores if score is not None])
    assert accuracy["trained"] > 0.9
    assert accuracy["trained"] > accuracy["random"] + 0.2


def test_bank_shared_head_and_the_users_own_all_change(plm: Plm, make_tastes: MakeTastes, small: Small) -> None:
    trainer = WarmStart(plm, make_tastes(2, train=8, test=0), small(biases=True, epochs=3, lr_own_head=0.01))
    start = trainer._bank.bank("")
    before = {name: tensor.clone() for name, tensor in start.tensors().items()}
    learned = [each.clone() for each in trainer._users.learned]
    after = trainer.train().bank.tensors()
    assert {name for name in after if torch.equal(after[name], before[name])} == set()
    for old, new in zip(learned, trainer._users.learned, strict=True):
        assert all(not torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("rate", "kept"), [("lr_masks", (0,)), ("lr_norm", (1, 2)), ("lr_own_head", (3, 4)), ("layer_norm", (1, 2))]
)
def test_what_has_no_rate_stays_as_it_starts(
    plm: Plm, make_tastes: MakeTastes, small: Small, rate: str, kept: Sequence[int]
) -> None:
    trainer = WarmStart(plm, make_tastes(1, train=8, test=0), small(epochs=2, **{rate: 0}))
    before = [each.clone() for each in trainer._users.learned]
    trainer.train()
    same = [torch.equal(old, new) for old, new in zip(before, trainer._users.learned, strict=True)]
    assert [number for number, each in enumerate(same) if each] == list(kept)


def _scramble(trainer: WarmStart) -> None:
    """Heads away from zero, where they would stop all gradients, and users away from each other."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for each in (trainer._bank.head_weight, trainer._bank.head_bias, *trainer._users.learned):
            each.add_(0.3 * torch.randn(each.shape, generator=generator))


class Recorder:
    """In the optimiser's place: keeps what it is given, moves nothing."""

    users: Tensor
    gradients: Sequence[Tensor | None]
    share: Tensor

    def step(self, users: Tensor, gradients: Sequence[Tensor | None], share: Tensor) -> None:
        self.users, self.gradients, self.share = users, gradients, share


def _recorded(trainer: WarmStart, picks: Sequence[Pick]) -> tuple[float, Recorder]:
    recorder = Recorder()
    trainer._optimizer = recorder  # type: ignore[assignment]
    return trainer._step(picks, 0.25), recorder


def test_a_step_is_what_plain_autograd_says_for_the_bank_and_for_every_user(
    plm: Plm, make_tastes: MakeTastes, small: Small, one_adapter: Any
) -> None:
    settings = small(biases=True, k=2, own_head_penalty=0.7, user_rows=3)
    trainer = WarmStart(plm, ragged(make_tastes), settings)
    _scramble(trainer)
    picks = next(trainer._epoch())
    assert sorted(len(pick.places) for pick in picks) == [2, 3, 5, 11]
    loss, given = _recorded(trainer, picks)
    assert given.users.tolist() == [pick.slot for pick in picks]
    assert given.share.tolist() == [0.25] * 4

    bank = (trainer._bank._down, trainer._bank._up, trainer._bank.head_weight, trainer._bank.head_bias)
    down, up, weight, bias = (each.detach().clone().requires_grad_() for each in bank)
    users = [[each[pick.slot].clone().requires_grad_() for each in trainer._users.learned] for pick in picks]
    losses = []
    for pick, (logits, ln_weight, ln_bias, own_weight, own_bias) in zip(picks, users, strict=True):
        soft = logits.softmax(dim=2)
        hard = torch.zeros_like(soft).scatter(2, logits.topk(2, dim=2).indices, 0.5)
        mask_a, mask_b = hard + soft - soft.detach()
        a, b = (torch.einsum("ln,lnd->ld", *each) for each in ((mask_a, down), (mask_b, up)))
        wide = 32 * 4
        matrices = (a[:, :wide].view(2, 32, 4), a[:, wide:], b[:, :wide].view(2, 4, 32), b[:, wide:])
        adapter = one_adapter(*matrices, ln_weight, ln_bias)
        pooled = torch.stack([adapter.pooled(plm, pick.texts.texts[place]) for place in pick.places])
        each = functional.cross_entropy(
            pooled @ (weight + own_weight).T + bias + own_bias, pick.texts.targets[pick.places], reduction="none"
        )
        losses.append((each, own_weight))
    mean = torch.cat([each for each, _ in losses]).mean()
    for parameter, wanted in zip(
        bank, torch.autograd.grad(mean, (down, up, weight, bias), retain_graph=True), strict=True
    ):
        _assert_near(parameter.grad, wanted)
    for place, ((each, own_weight), own) in enumerate(zip(losses, users, strict=True)):
        objective = each.mean() + 0.7 * own_weight.square().sum() / 2
        for found, wanted in zip(given.gradients, torch.autograd.grad(objective, own, retain_graph=True), strict=True):
            assert found is not None
            _assert_near(found[place], wanted)
    assert loss == pytest.approx(mean.item(), rel=1e-5)


def _assert_near(found: Tensor | None, wanted: Tensor) -> None:
    assert found is not None
    assert wanted.any()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("gumbel", [0.0, 1.0])
def test_steps_in_parts_have_the_gradients_of_whole_steps(
    plm: Plm, make_tastes: MakeTastes, small: Small, gumbel: float
) -> None:
    gradients = []
    for tokens in (8192, 60, 1):
        trainer = WarmStart(plm, ragged(make_tastes), small(batch_tokens=tokens, gumbel=gumbel))
        _scramble(trainer)
        _, given = _recorded(trainer, next(trainer._epoch()))
        bank = trainer._bank
        gradients.append([bank._down.grad, bank._up.grad, bank.head_weight.grad, bank.head_bias.grad, *given.gradients])
    for parts in gradients[1:]:
        for one, whole in zip(parts, gradients[0], strict=True):
            assert whole is not None
            _assert_near(one, whole)


def test_noise_makes_users_try_other_adapters_than_those_that_lead(
    plm: Plm, make_tastes: MakeTastes, small: Small
) -> None:
    found = []
    for gumbel in (0.0, 1.0):
        trainer = WarmStart(plm, ragged(make_tastes), small(gumbel=gumbel, k=1, adapters=16))
        _scramble(trainer)
        _recorded(trainer, next(trainer._epoch()))
        assert trainer._bank._down.grad is not None
        found.append(trainer._bank._down.grad.abs().sum(dim=2) > 0)
    assert not torch.equal(*found)


def test_every_train_row_is_used_once_an_epoch_and_a_user_once_a_step(
    plm: Plm, make_tastes: MakeTastes, small: Small
) -> None:
    trainer = WarmStart(plm, ragged(make_tastes), small(batch_users=3, user_rows=2))
    epochs = [list(trainer._epoch()) for _ in range(5)]
    wanted = Counter((user, row) for user, count in enumerate((2, 3, 5, 11)) for row in range(count))
    for steps in epochs:
        assert Counter((pick.slot, place) for step in steps for pick in step for place in pick.places) == wanted
        assert all(len({pick.slot for pick in step}) == len(step) <= 3 for step in steps)
        assert all(pick.texts is trainer._train[pick.slot] for step in steps for pick in step)
    merged = [pick for steps in epochs for step in steps for pick in step if len(pick.places) > 3]
    assert merged, "no user came twice into one step"
    orders = [[(pick.slot, tuple(pick.places)) for step in steps for pick in step] for steps in epochs]
    assert orders[0] != orders[1]


def test_every_step_is_told_and_users_without_train_rows_are_left_out(
    plm: Plm, make_tastes: MakeTastes, small: Small
) -> None:
    seen: list[BankProgress] = []
    users = make_tastes(2, train=8, test=4)
    guest = replace(users["pro-0"], examples=users["pro-0"].examples[8:])
    trainer = WarmStart(plm, {"guest": guest, **users}, small(epochs=2, batch_users=2, user_rows=4))
    trained = trainer.train(seen.append)
    assert [(each.epoch, each.step) for each in seen] == [(e, s) for e in (1, 2) for s in range(1, 5)]
    assert {(each.epochs, each.steps) for each in seen} == {(2, 4)}
    assert seen[0].loss == pytest.approx(np.log(2), rel=1e-6)
    assert [each.score is None for each in seen] == [True] * 4 + [False] * 4
    assert trained.held_out is not None
    assert (trained.rows, trained.held_out.rows, trained.skipped, trained.cut) == (32, 16, 1, 0)
    assert trainer._users.learned.logits.shape[0] == 4


def test_the_score_is_that_of_each_user_with_its_own_masks_and_head(
    plm: Plm, make_tastes: MakeTastes, small: Small
) -> None:
    trainer = WarmStart(plm, make_tastes(2, train=4, test=6), small())
    _scramble(trainer)
    whole = trainer.score()
    logits, targets = [], []
    with torch.no_grad():
        for user, texts in enumerate(trainer._held_out):
            part = type(trainer._users.learned)(*(each[user][None] for each in trainer._users.learned))
            for row in range(len(texts)):
                batch = pack_rows(plm, [Pick(0, texts, np.array([row]))])
                logits.append(trainer._logits(batch, part))
                targets.append(batch.targets)
    alone = score_logits(torch.cat(logits), torch.cat(targets))
    assert whole is not None
    assert (whole.rows, whole.accuracy) == (24, alone.accuracy)
    assert whole.loss == pytest.approx(alone.loss, rel=1e-5)
    trainer._settings = replace(trainer._settings, batch_tokens=20)
    in_parts = trainer.score()
    assert in_parts is not None
    assert in_parts.loss == pytest.approx(whole.loss, rel=1e-5)


def test_users_whose_labels_are_numbers_are_learned(plm: Plm, make_tastes: MakeTastes, small: Small) -> None:
    values = {"yes": 1.5, "no": -0.5}
    users = {
        name: Dataset(tuple(replace(row, label=values[str(row.label)]) for row in each.examples), ("value",))
        for name, each in make_tastes(4, train=32, test=4).items()
    }
    trained = WarmStart(plm, users, small(**{**_LEARNED, "epochs": 16})).train()
    assert trained.held_out is not None
    assert trained.held_out.accuracy is None
    assert (trained.held_out.correlation or 0) > 0.8
    assert trained.bank.heads["shared"].labels == ("value",)


@pytest.mark.usefixtures("frozen")
def test_the_same_seed_gives_the_same_file_another_seed_another_and_the_model_stays_as_it_is(
    plm: Plm, make_tastes: MakeTastes, small: Small, tmp_path: Path
) -> None:
    files = []
    for number, seed in enumerate((3, 3, 4)):
        file = tmp_path / str(number)
        settings = small(seed=seed, gumbel=1.0, user_rows=3, batch_users=2)
        write_bank_file(WarmStart(plm, make_tastes(2, train=8, test=2), settings).train().bank, file)
        files.append(file.read_bytes())
    assert files[0] == files[1] != files[2]


def test_dropout_is_for_learning_alone_and_drawn_by_the_seed(
    plm: Plm, make_tastes: MakeTastes, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.Dropout, "forward", _noted(drawn := []))
    users, state = make_tastes(2, train=8, test=2), torch.get_rng_state()
    first, again = (WarmStart(plm, users, small(dropout=0.5)).train().bank for _ in range(2))
    assert set(drawn) == {(True, True), (False, False)}  # rows that are scored lose nothing
    assert torch.equal(first.down, again.down)
    assert not torch.equal(first.down, WarmStart(plm, users, small()).train().bank.down)
    assert torch.equal(torch.get_rng_state(), state)


def _noted(drawn: list[tuple[bool, bool]]) -> Callable[[nn.Dropout, Tensor], Tensor]:
    """`nn.Dropout.forward` that notes whether it drops, and whether somebody learns."""

    def forward(module: nn.Dropout, x: Tensor) -> Tensor:
        drawn.append((module.training, torch.is_grad_enabled()))
        return functional.dropout(x, module.p, module.training)

    return forward


def test_the_bank_survives_its_file_and_says_where_it_comes_from_without_names_texts_and_paths(
    plm: Plm, make_tastes: MakeTastes, small: Small, tmp_path: Path
) -> None:
    users = make_tastes(2, train=8, test=2)
    trained = WarmStart(plm, users, small()).train()
    write_bank_file(trained.bank, tmp_path / "bank")
    bank = open_bank(str(tmp_path / "bank"), plm.facts)
    assert (bank.fingerprint, bank.provenance) == (trained.bank.fingerprint, trained.bank.provenance)
    told: Mapping[str, Any] = json.loads(bank.provenance)
    assert trained.held_out is not None
    assert (told["method"], told["model_type"], told["settings"]["adapters"]) == ("warm start", "bert", 4)
    assert told["held_out"]["loss"] == trained.held_out.loss
    assert told["data"].keys() == {"rows", "rows_sha256", "users"}
    assert (told["data"]["rows"], told["data"]["users"]) == (32, 4)
    assert len(bytes.fromhex(told["data"]["rows_sha256"])) == 32
    texts = [row.text for each in users.values() for row in each.examples]
    assert not any(secret in bank.provenance for secret in (*texts, *users, plm.name, str(tmp_path), "/"))


def test_a_loss_that_is_no_number_ends_the_training_and_names_the_step(
    plm: Plm, make_tastes: MakeTastes, small: Small
) -> None:
    seen: list[BankProgress] = []
    trainer = WarmStart(plm, make_tastes(2, train=8, test=2), small(lr_bank=1e38, batch_users=1, epochs=5))
    with pytest.raises(TuningSettingsInvalid) as refused:
        trainer.train(seen.append)
    epoch, step = divmod(seen[-1].step + 4 * (seen[-1].epoch - 1), 4)
    assert str(refused.value).startswith(f"lr_bank is 1e+38, and the loss of step {step + 1} in epoch {epoch + 1} is ")
    assert str(refused.value).endswith(": try a lower one (--lr-bank)")


def test_what_cannot_be_learned_is_refused_before_anything_else(
    plm: Plm, make_tastes: MakeTastes, small: Small
) -> None:
    users = make_tastes(1, train=2, test=2)
    guest = replace(users["pro-0"], examples=users["pro-0"].examples[2:])
    with pytest.raises(DataTooSmall, match="there are no train rows"):
        WarmStart(plm, {"guest": guest}, small())
    with pytest.raises(DatasetInvalid, match="'contra-0' has the labels"):
        WarmStart(plm, {**users, "contra-0": replace(users["contra-0"], labels=("no", "yes"))}, small())
    with pytest.raises(DatasetInvalid, match="the rows have completions"):
        WarmStart(plm, {"": Dataset((Example("w1", "w2"),), (), completions=True)}, small())

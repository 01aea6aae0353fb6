from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm
from xpeft_server.model.pooling import pool
from xpeft_tuning import cohort as cohort_module
from xpeft_tuning.cohort import Cohort
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.evaluation import Scored
from xpeft_tuning.labelled_texts import LabelledTexts
from xpeft_tuning.profile_stack import ProfileStack
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.trainee import Trainee, enrol

MakeDataset = Callable[..., Dataset]
QUICK: dict[str, Any] = {"epochs": 2, "batch_rows": 4, "head_penalty": 1.0}


def _learned(cohort: Cohort, trainee: Trainee) -> list[Tensor]:
    here = torch.tensor([trainee.place])
    leaves = cohort._stack.leaves(here)
    head = cohort._stack.head(here, leaves)
    return [*(each[0].detach() for each in leaves[:3]), *(each[0, : len(trainee.labels)].detach() for each in head)]


def test_a_stopped_profile_gives_its_place_to_one_that_waits(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    chosen = TuningSettings(epochs=30, lr_head=0.5, lr_masks=5, lr_norm=0.5, stop_on="loss", patience=2, batch_rows=8)
    datasets = [make_dataset(rows, seed=rows) for rows in (40, 60, 50)]
    first, second, third = (enrol(plm, str(n), each, each.labels, chosen) for n, each in enumerate(datasets))
    cohort = Cohort(plm, bank, chosen, places=2, classes=3)
    cohort.admit([first, second])
    assert cohort.free == 0
    while not (done := cohort.step()):
        pass
    (stopped,) = done
    (running,) = cohort.trainees
    assert stopped.epoch == stopped.best.epoch + 2 < 30
    assert {stopped.name, running.name} == {"0", "1"}
    before = _learned(cohort, running)
    cohort.admit([third])
    assert (third.place, cohort.free) == (stopped.place, 0)
    assert all(torch.equal(old, new) for old, new in zip(before, _learned(cohort, running), strict=True))
    left = []
    while cohort.trainees:
        left += cohort.step()
    assert {each.name for each in left} == {running.name, "2"}
    assert all(each.epoch <= each.best.epoch + 2 and each.best.profile is not None for each in left)


def test_an_epoch_that_is_not_the_best_is_not_kept(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    chosen = TuningSettings(epochs=5, lr_head=3, lr_masks=5, lr_norm=3, stop_on="loss", patience=9, head_penalty=1.0)
    dataset = make_dataset(40)
    trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
    cohort = Cohort(plm, bank, chosen, places=1, classes=3)
    cohort.admit([trainee])
    assert trainee.score is not None
    losses = [trainee.score.loss]
    while cohort.trainees:
        cohort.step()
        if trainee.ends_epoch:
            losses.append(trainee.score.loss)
    assert len(losses) == 6
    assert trainee.best.epoch == int(np.argmin(losses)) < 5
    assert trainee.best.profile is not None
    (score,) = cohort.evaluator.scores([Scored(trainee.best.profile, trainee.dev)])
    assert score.loss == min(losses)


def test_the_loss_that_is_told_is_the_mean_of_the_rows_whatever_they_weigh(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    still = {"lr_masks": 0.0, "lr_norm": 0.0, "lr_head": 0.0, "held_out": 0.0, "epochs": 1}
    chosen = TuningSettings(**(QUICK | still), class_weights="balanced")
    trainees = []
    for name, rows in (("ann", 24), ("bob", 40)):
        dataset = make_dataset(rows, seed=rows)
        uneven = Dataset(dataset.examples[:10] + dataset.examples[10::3], dataset.labels)
        trainees.append(enrol(plm, name, uneven, uneven.labels, chosen))
    cohort = Cohort(plm, bank, chosen, places=2, classes=3)
    cohort.admit(trainees)
    assert all(each.row_weights.std() > 0.1 for each in trainees)
    total = defaultdict(float)
    while cohort.trainees:
        rows = {each.name: each for each in cohort.trainees}
        before = {name: sum(map(float, each.losses)) if each.steps_done else 0.0 for name, each in rows.items()}
        taken = {name: len(each.train) for name, each in rows.items()}
        cohort.step()
        for name, each in rows.items():
            step_rows = np.array_split(np.arange(taken[name]), each.steps)[each.step - 1]
            total[name] += (sum(map(float, each.losses)) - before[name]) * len(step_rows)
    for each in trainees:
        assert each.best.profile is not None
        (score,) = cohort.evaluator.scores([Scored(each.best.profile, each.train)])
        assert total[each.name] / len(each.train) == pytest.approx(score.loss, rel=2e-3)


def test_features_come_in_the_texts_order_however_they_are_packed(plm: Plm, bank: Bank) -> None:
    rows = [Example(" ".join(["w7"] * count), "ab"[count % 2]) for count in (9, 1, 30, 4, 4, 17)]
    texts = LabelledTexts(plm, rows, ("a", "b"), completions=False)
    cohort = Cohort(plm, bank, TuningSettings(batch_tokens=20), places=1, classes=2)
    batches = [pack([text], None) for text in texts.texts]
    wanted = torch.cat([pool(plm.forward(batch), batch, bank.pooling) for batch in batches])
    torch.testing.assert_close(cohort.features([texts]), [wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "passes"), [(4096, 1), (100, 7), (1, 24 + 7 + 40)], ids=["all at once", "in parts", "a text each"]
)
def test_who_is_admitted_together_shares_passes_and_starts_as_alone(
    plm: Plm,
    bank: Bank,
    make_dataset: MakeDataset,
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    passes: int,
) -> None:
    chosen = TuningSettings(**QUICK, held_out=0.0, batch_tokens=tokens, temperature=2.0, kind="soft")
    counts = {"ann": 24, "bob": 7, "cid": 40}
    datasets = {name: make_dataset(rows, ("x", "y"), seed=rows) for name, rows in counts.items()}
    alone, cohort = {}, Cohort(plm, bank, chosen, places=3, classes=2)
    for name, dataset in datasets.items():
        trainee, own = enrol(plm, name, dataset, dataset.labels, chosen), Cohort(plm, bank, chosen, places=1, classes=2)
        own.admit([trainee])
        alone[name] = _learned(own, trainee)
    seen: list[Any] = []
    forward = cohort_module.hidden_states
    monkeypatch.setattr(cohort_module, "hidden_states", lambda *args: seen.append(args) or forward(*args))
    together = [enrol(plm, name, dataset, dataset.labels, chosen) for name, dataset in datasets.items()]
    cohort.admit(together)
    assert len(seen) == passes
    for trainee in together:
        for mine, theirs in zip(_learned(cohort, trainee), alone[trainee.name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=3e-6)
    heads = [_learned(cohort, trainee)[3] for trainee in together]
    assert not torch.allclose(heads[0], heads[1], rtol=0.1)
    assert not torch.allclose(heads[0], heads[2], rtol=0.1)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_what_is_tuned_is_what_is_served(plm: Plm, bank: Bank, make_dataset: MakeDataset, kind: str) -> None:
    """A soft mask at the temperature that tuning ended with; within float16, which a profile is kept in."""
    dataset = make_dataset(30)
    settings: dict[str, Any] = {**QUICK, "kind": kind, "temperature": 1.5, "last_temperature": 0.4}
    chosen = TuningSettings(**settings, held_out=0.0)
    trainee = enrol(plm, "ann", dataset, dataset.labels, chosen)
    cohort = Cohort(plm, bank, chosen, places=1, classes=3)
    cohort.admit([trainee])
    while cohort.trainees:
        cohort.step()
    weight, bias = _learned(cohort, trainee)[3:]
    logits = cohort.features([trainee.train], [trainee])[0] @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, trainee.train.targets).item()
    assert trainee.best.profile is not None
    (score,) = cohort.evaluator.scores([Scored(trainee.best.profile, trainee.train)])
    assert score.loss == pytest.approx(loss, rel=2e-3)


def _ended(cohort: Cohort, trainees: list[Trainee]) -> list[Trainee]:
    """Tuned to the end, in the order in which they leave."""
    cohort.admit(trainees)
    left = []
    while cohort.trainees:
        left += cohort.step()
    return left


@pytest.mark.parametrize(
    ("settings", "score_held_out", "made"),
    [
        ({}, False, [1, 4]),
        ({"epochs": 1}, False, [1]),
        ({}, True, [1, 2, 3, 4]),
        ({"held_out": 0.0}, True, [1, 4]),
        ({"stop_on": "loss", "patience": 9}, False, [0, 1, 2, 3, 4]),
    ],
)
def test_a_profile_is_made_where_somebody_needs_it(
    plm: Plm,
    bank: Bank,
    make_dataset: MakeDataset,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    score_held_out: bool,
    made: list[int],
) -> None:
    """At the first epoch's end, to know that it can be served, at the last, and wherever it is scored."""
    chosen = TuningSettings(**(QUICK | {"epochs": 4} | settings))
    datasets = [make_dataset(rows, seed=rows) for rows in (24, 40)]
    trainees = [enrol(plm, str(n), each, each.labels, chosen) for n, each in enumerate(datasets)]
    cohort = Cohort(plm, bank, chosen, places=2, classes=3, score_held_out=score_held_out)
    found = defaultdict(list)
    make = ProfileStack.profile

    def noted(stack: ProfileStack, place: int, *more: Any) -> Profile:
        found[place].append(next(each.epochs_done for each in trainees if each.place == place))
        return make(stack, place, *more)

    monkeypatch.setattr(ProfileStack, "profile", noted)
    _ended(cohort, trainees)
    assert found == {0: made, 1: made}


@pytest.mark.parametrize(
    "settings",
    [{}, {"kind": "soft"}, {"stop_on": "loss"}, {"lr_norm": 4e4, "epochs": 9, "batch_rows": 64}],
    ids=["hard", "soft", "stopped", "beyond float16"],
)
def test_whether_profiles_are_made_at_every_epoch_changes_no_outcome(
    plm: Plm, bank: Bank, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """Also not when a profile leaves that cannot be served any more."""
    chosen = TuningSettings(**(QUICK | {"epochs": 4} | settings))
    outcomes = []
    for every in (False, True):
        if every:
            monkeypatch.setattr(Cohort, "_is_wanted", lambda *_: True)
        datasets = [make_dataset(rows, seed=rows) for rows in (24, 40, 18)]
        trainees = [enrol(plm, str(n), each, each.labels, chosen) for n, each in enumerate(datasets)]
        left = _ended(Cohort(plm, bank, chosen, places=3, classes=4), trainees)
        outcomes.append(
            [
                (
                    each.name,
                    each.epoch,
                    str(each.failure),
                    None if each.failure else (each.best.epoch, each.best.profile and each.best.profile.version),
                )
                for each in left
            ]
        )
    assert outcomes[0] == outcomes[1]
    epochs = [epoch for _, epoch, _, _ in outcomes[0]]
    failures = [failure for _, _, failure, _ in outcomes[0]]
    if "lr_norm" in settings:
        assert all("ln_" in failure and "beyond float16" in failure for failure in failures)
        assert max(epochs) < 9
        assert min(epochs) > 1
    else:
        assert failures == ["None"] * 3


def test_a_later_epoch_that_cannot_be_served_costs_no_profile_where_the_best_is_kept(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    wild = {"lr_norm": 4e4, "epochs": 9, "batch_rows": 64}
    ends = []
    for stop_on in (None, "loss"):
        chosen = TuningSettings(**(QUICK | wild | {"stop_on": stop_on, "patience": 9}))
        dataset = make_dataset(24, seed=24)
        trainee = enrol(plm, "0", dataset, dataset.labels, chosen)
        ends += _ended(Cohort(plm, bank, chosen, places=1, classes=4), [trainee])
    lost, kept = ends
    assert "beyond float16" in str(lost.failure)
    assert kept.failure is None
    assert kept.epoch == lost.epoch
    assert kept.best.epoch < kept.epoch
    assert kept.best.profile is not None

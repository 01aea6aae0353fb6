from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Dataset, Example, Split
from xpeft_tuning.errors import Unservable
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.trainee import Trainee, enrol

MakeDataset = Callable[..., Dataset]


def _enrolled(plm: Plm, dataset: Dataset, **settings: object) -> Trainee:
    chosen = TuningSettings(**{"held_out": 0.0, **settings})  # type: ignore[arg-type]
    return enrol(plm, "ann", dataset, dataset.labels, chosen)


def _counted(*counts: int, split: Split | None = None) -> Dataset:
    labels = tuple(f"l{number}" for number in range(len(counts)))
    rows = [
        Example(f"w{number}", labels[number], None, split) for number, count in enumerate(counts) for _ in range(count)
    ]
    return Dataset(tuple(rows), labels)


def _walk(trainee: Trainee) -> list[list[int]]:
    """All steps' rows to the end."""
    taken = []
    while not trainee.finished:
        taken.append(trainee.next_rows().tolist())
        trainee.stepped(1.0)
    return taken


def test_an_epoch_takes_every_row_once_in_even_steps_and_a_new_order(plm: Plm, make_dataset: MakeDataset) -> None:
    trainee = _enrolled(plm, make_dataset(33), batch_rows=8, epochs=3)
    steps = _walk(trainee)
    assert [len(rows) for rows in steps] == [7, 7, 7, 6, 6] * 3
    epochs = [[row for rows in steps[start : start + 5] for row in rows] for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(33))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_seed_decides_the_order(plm: Plm, make_dataset: MakeDataset) -> None:
    first, again, other = (_walk(_enrolled(plm, make_dataset(20), epochs=2, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_it_knows_where_it_is(plm: Plm, make_dataset: MakeDataset) -> None:
    trainee = _enrolled(plm, make_dataset(10), batch_rows=4, epochs=2)
    seen = []
    assert (trainee.steps, trainee.epoch, trainee.epochs_done, trainee.ends_epoch) == (3, 1, 0, False)
    for number in range(6):
        assert trainee.share_done == pytest.approx(number / 6)
        trainee.next_rows()
        trainee.stepped(float(number))
        seen.append((trainee.epoch, trainee.step, trainee.epochs_done, trainee.ends_epoch, trainee.finished))
    assert seen == [
        (1, 1, 0, False, False),
        (1, 2, 0, False, False),
        (1, 3, 1, True, False),
        (2, 1, 1, False, False),
        (2, 2, 1, False, False),
        (2, 3, 2, True, True),
    ]
    assert sum(map(float, trainee.losses)) == 3 + 4 + 5


def test_the_first_step_has_the_first_temperature_and_the_last_step_the_last(
    plm: Plm, make_dataset: MakeDataset
) -> None:
    trainee = _enrolled(plm, make_dataset(10), batch_rows=4, epochs=2, temperature=2.0, last_temperature=0.5)
    found = []
    while not trainee.finished:
        found.append(trainee.temperature)
        trainee.next_rows()
        trainee.stepped(1.0)
    assert (found[0], found[-1]) == pytest.approx((2.0, 0.5))
    assert [after / before for before, after in pairwise(found)] == pytest.approx([0.25**0.2] * 5)
    assert trainee.temperature == found[-1]


def test_the_only_step_has_the_last_temperature(plm: Plm, make_dataset: MakeDataset) -> None:
    trainee = _enrolled(plm, make_dataset(6), epochs=1, temperature=2.0, last_temperature=0.5)
    assert trainee.temperature == 0.5


def test_noise_is_drawn_anew_for_a_step_and_decided_by_the_seed(plm: Plm, make_dataset: MakeDataset) -> None:
    drawn = []
    for seed in (1, 1, 2):
        trainee = _enrolled(plm, make_dataset(6), seed=seed)
        for _ in range(2):
            trainee.draw_noise((2, 3))
            drawn.append(trainee.noise)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert len({tuple(each.flatten().tolist()) for each in drawn}) == 4


def test_a_failure_ends_the_tuning_with_the_epoch(plm: Plm, make_dataset: MakeDataset) -> None:
    trainee = _enrolled(plm, make_dataset(10), batch_rows=4, epochs=9)
    trainee.failure = Unservable("it went wrong")
    assert len(_walk(trainee)) == 3


def test_balanced_weights_have_mean_one_and_every_label_the_same_sum(plm: Plm) -> None:
    trainee = _enrolled(plm, _counted(9, 1, 5), class_weights="balanced")
    assert trainee.row_weights.mean().item() == pytest.approx(1)
    sums = torch.zeros(3).index_add(0, trainee.train.targets, trainee.row_weights)
    torch.testing.assert_close(sums, torch.full((3,), 5.0))


def test_labels_without_train_rows_take_no_weight(plm: Plm) -> None:
    settings = TuningSettings(held_out=0.0, class_weights="balanced", shared_head="x")
    dataset = _counted(9, 3)
    trainee = enrol(plm, "ann", dataset, ("none", "l0", "no more", "l1"), settings)
    assert trainee.row_weights.tolist() == pytest.approx([12 / 18] * 9 + [2.0] * 3)


@pytest.mark.parametrize("task", ["classify", "regress", "complete"])
def test_otherwise_every_row_weighs_one(plm: Plm, decoder: Plm, task: str) -> None:
    datasets = {
        "classify": _counted(9, 1),
        "regress": Dataset(tuple(Example("w1", float(number)) for number in range(9)), ("value",)),
        "complete": Dataset(tuple(Example("w1", f"w{number % 2}") for number in range(9)), (), completions=True),
    }
    weighs = None if task == "classify" else "balanced"
    trainee = _enrolled(decoder if task == "complete" else plm, datasets[task], class_weights=weighs)
    assert trainee.row_weights.tolist() == [1.0] * len(trainee.train)


def test_it_measures_on_held_out_rows_or_else_on_train_rows(plm: Plm) -> None:
    trainee = _enrolled(plm, _counted(10, 10), held_out=0.2)
    assert (len(trainee.train), len(trainee.held_out), trainee.measured) == (16, 4, trainee.held_out)
    trainee = _enrolled(plm, _counted(10, 10))
    assert trainee.measured is trainee.train

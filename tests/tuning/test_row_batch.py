from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Example
from xpeft_tuning.labelled_texts import LabelledTexts
from xpeft_tuning.row_batch import Pick, pack_rows, within


def _texts(plm: Plm, *words: int) -> LabelledTexts:
    """Texts of so many words, two tokens more each; the labels in turn."""
    rows = [Example(" ".join([f"w{number}"] * count), "ab"[number % 2]) for number, count in enumerate(words)]
    return LabelledTexts(plm, rows, ("a", "b"), completions=False)


def _picks(plm: Plm) -> list[Pick]:
    """27, 3 and 14 tokens; the first takes its texts in an order of its own."""
    return [
        Pick(5, _texts(plm, 4, 9, 1, 4), np.array([3, 1, 0, 2])[:3]),
        Pick(2, _texts(plm, 6, 1), np.array([1])),
        Pick(0, _texts(plm, 3, 1, 2), np.arange(3)),
    ]


def test_every_row_is_packed_once_with_its_own_target_and_slot(plm: Plm) -> None:
    picks = _picks(plm)
    batch = pack_rows(plm, picks)
    rows = [(pick.slot, pick.texts.texts[place], pick.texts.targets[place]) for pick in picks for place in pick.places]
    assert sorted(batch.rows.tolist()) == list(range(len(rows)))
    packed = zip(batch.rows.tolist(), batch.packed.starts, batch.packed.ends, batch.slots, batch.targets, strict=True)
    for row, start, end, slot, target in packed:
        wanted_slot, text, wanted_target = rows[row]
        assert batch.packed.input_ids[0, start:end].tolist() == text.ids.tolist()
        assert (slot, target) == (wanted_slot, wanted_target)


def test_the_rows_of_a_slot_are_one_run(plm: Plm) -> None:
    runs = pack_rows(plm, _picks(plm)).tiles.runs
    assert sorted(runs[:, 0].tolist()) == [0, 2, 5]
    assert {slot: length for slot, _, length in runs.tolist()} == {5: 23, 2: 3, 0: 12}


def test_numbers_and_the_texts_order_pass_through(plm: Plm) -> None:
    texts = LabelledTexts(plm, [Example("w1 w2", 0.5), Example("w3", -2.0)], ("value",), completions=False)
    batch = pack_rows(plm, [Pick(0, texts, np.array([1, 0]))])
    assert batch.targets.dtype == torch.float32
    assert torch.equal(batch.targets, torch.tensor([-2.0, 0.5])[batch.rows])


@pytest.mark.parametrize("tokens", [1, 3, 11, 14, 23, 26, 37, 38, 1000])
def test_runs_hold_every_row_once_in_order_and_are_as_long_as_may_be(plm: Plm, tokens: int) -> None:
    picks = _picks(plm)
    runs = list(within(picks, tokens))
    found = [(piece.slot, int(place)) for run in runs for piece in run for place in piece.places]
    assert found == [(pick.slot, int(place)) for pick in picks for place in pick.places]
    for run in runs:
        assert sum(piece.tokens for piece in run) <= tokens or sum(len(piece.places) for piece in run) == 1
    for run, following in pairwise(runs):
        assert sum(piece.tokens for piece in run) + following[0].tokens > tokens


def test_a_pick_that_fits_is_not_cut_and_one_that_does_not_shares_no_run_with_itself(plm: Plm) -> None:
    for tokens in range(1, 40):
        for run in within(_picks(plm), tokens):
            slots = [piece.slot for piece in run]
            assert len(set(slots)) == len(slots)
        pieces = [piece.slot for run in within(_picks(plm), tokens) for piece in run]
        for slot, total in ((5, 23), (2, 3), (0, 12)):
            assert (pieces.count(slot) == 1) is (total <= tokens or slot == 2)


def test_no_picks_are_no_runs() -> None:
    assert list(within([], 10)) == []

from __future__ import annotations

import numpy as np
import torch

from xpeft_server.model.plm import Plm
from xpeft_tuning.dataset import Example
from xpeft_tuning.labelled_texts import LabelledTexts

ROWS = [
    Example("w1 w2 w3", "b"),
    Example(" ".join(["w4"] * 80), "a"),
    Example("w5", "a", text_pair="w6 w7"),
    Example("w8", "b"),
]


def test_targets_are_places_in_the_labels(plm: Plm) -> None:
    assert LabelledTexts(plm, ROWS, ("a", "b")).targets.tolist() == [1, 0, 0, 1]


def test_what_is_longer_than_the_model_takes_is_cut_and_counted(plm: Plm) -> None:
    texts = LabelledTexts(plm, ROWS, ("a", "b"))
    assert texts.cut == 1
    assert [len(text) for text in texts.texts] == [5, 64, 6, 3]


def test_a_pair_has_segments(plm: Plm) -> None:
    assert LabelledTexts(plm, ROWS, ("a", "b")).texts[2].type_ids.tolist() == [0, 0, 0, 1, 1, 1]


def test_batches_hold_every_text_once_within_the_tokens(plm: Plm) -> None:
    texts = LabelledTexts(plm, ROWS, ("a", "b"))
    batches = list(texts.batches(texts.by_length(), 14))
    assert [batch.packed.owners.numel() for batch in batches] == [14, 64]
    assert sorted(torch.cat([batch.places for batch in batches]).tolist()) == [0, 1, 2, 3]
    for batch in batches:
        assert batch.targets.tolist() == texts.targets[batch.places].tolist()
        for start, end, place in zip(batch.packed.starts, batch.packed.ends, batch.places, strict=True):
            np.testing.assert_array_equal(batch.packed.input_ids[0, start:end], texts.texts[place].ids)


def test_no_rows_are_no_texts(plm: Plm) -> None:
    texts = LabelledTexts(plm, [], ("a", "b"))
    assert (len(texts), texts.cut, list(texts.batches(texts.by_length(), 14))) == (0, 0, [])

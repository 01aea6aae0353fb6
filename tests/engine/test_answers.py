"""Softmax of few labels and of many, against the same in numpy's longest floats."""

from __future__ import annotations

import numpy as np
import pytest

from xpeft_server.engine.answers import classified_texts


@pytest.mark.parametrize("labels", [2, 3, 16, 17, 1000])
@pytest.mark.parametrize("scale", [0.1, 5.0, 300.0])
def test_probabilities_are_the_softmax(labels: int, scale: float) -> None:
    names = tuple(f"l{number}" for number in range(labels))
    logits = (scale * np.random.default_rng(labels).normal(size=(4, labels))).astype(np.float32)
    for row, found in zip(logits, classified_texts(list(logits), names), strict=True):
        exact = np.exp(row.astype(np.longdouble) - row.max())
        np.testing.assert_allclose(found.probs, (exact / exact.sum()).astype(float), rtol=1e-12, atol=1e-300)
        assert found.num_classes == labels
        assert found.label == names[int(row.argmax())]
        assert found.score == max(found.probs)


@pytest.mark.parametrize("labels", [3, 40])
def test_of_equally_likely_labels_the_first_is_told(labels: int) -> None:
    (found,) = classified_texts([np.zeros(labels, np.float32)], tuple(f"l{number}" for number in range(labels)))
    assert (found.label, found.score) == ("l0", 1 / labels)


def test_an_answer_s_bits_do_not_depend_on_its_neighbours() -> None:
    names, logits = ("a", "b", "c"), np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    together = classified_texts(list(logits), names)
    assert together == tuple(classified_texts([row], names)[0] for row in logits)


def test_one_label_is_a_number() -> None:
    (found,) = classified_texts([np.array([2.5], np.float32)], ("stars",))
    assert found == ("stars", 2.5, (), 1)

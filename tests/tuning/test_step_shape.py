from __future__ import annotations

import numpy as np
import pytest

from xpeft_tuning.step_shape import Need, StepShape, StepShapes


def _shapes(*, places: int = 64, rows: int = 16, limit: int = 512, tokens: int = 4096) -> StepShapes:
    return StepShapes(places=places, rows=rows, limit=limit, tokens=tokens)


@pytest.mark.parametrize("seed", range(5))
def test_everybody_is_in_one_part_that_holds_it_or_is_left(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = _shapes(places=40, rows=20, limit=300)
    every: set[StepShape] = set()
    for _ in range(30):
        needs = [
            Need(int(rng.integers(1, 21)), int(length), int(rng.integers(0, length)))
            for length in rng.integers(2, 301, rng.integers(1, 41))
        ]
        parts, left = shapes.cut(needs)
        assert sorted([*left, *(each for part in parts for each in part.members)]) == list(range(len(needs)))
        for shape, members in parts:
            assert shape.tokens == shape.places * shape.rows * shape.length <= 4096
            assert len(members) <= shape.places <= 40
            assert shape.rows <= 20
            for need in (needs[each] for each in members):
                assert need.rows <= shape.rows
                assert need.longest <= shape.length <= 300
                assert need.answer <= shape.answer < shape.length
            every.add(shape)
        assert all(needs[each].longest * needs[each].rows > 4096 / 3 for each in left)
    assert len({shape[:3] for shape in every}) < 120


def test_texts_of_similar_length_go_together() -> None:
    needs = [Need(15, length) for length in (60, 14, 30, 61, 15, 29)]
    parts, left = _shapes(tokens=2048).cut(needs)
    assert left == []
    assert parts == [
        (StepShape(2, 16, 64, 0), [3, 0]),
        (StepShape(4, 16, 32, 0), [2, 5, 4, 1]),
    ]


def test_a_step_of_all_places_is_one_part_where_tokens_allow_it() -> None:
    (part,), left = _shapes(places=48, tokens=10**6).cut([Need(15, 20)] * 48)
    assert (part.shape, left) == (StepShape(48, 16, 32, 0), [])


def test_the_longest_text_of_the_model_has_a_shape_and_one_beyond_all_has_none() -> None:
    parts, left = _shapes(limit=62).cut([Need(4, 62)])
    assert parts == [(StepShape(1, 4, 62, 0), [0])]
    parts, left = _shapes(limit=8192).cut([Need(4, 513), Need(4, 512)])
    assert parts == [(StepShape(1, 4, 512, 0), [1])]
    assert left == [0]


def test_few_rows_do_not_pay_for_many() -> None:
    parts, _ = _shapes(rows=1024, places=2, tokens=40000).cut([Need(1024, 30), Need(15, 12)])
    assert [part.shape for part in parts] == [StepShape(1, 1024, 32, 0), StepShape(1, 16, 16, 0)]


def test_a_completion_is_shorter_than_its_text() -> None:
    (part,), _ = _shapes().cut([Need(4, 16, 15)])
    assert part.shape == StepShape(1, 4, 16, 15)
    (part,), _ = _shapes().cut([Need(4, 40, 3), Need(4, 40, 20)])
    assert part.shape == StepShape(2, 4, 48, 32)

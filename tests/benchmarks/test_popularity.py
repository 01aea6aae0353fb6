from __future__ import annotations

import numpy as np
import pytest

from xpeft_benchmarks.popularity import Popularity, PopularityInvalid, parse_popularities


def draw(text: str, requests: int, profiles: int) -> np.ndarray:
    return Popularity.parse(text).draw(requests, profiles, np.random.default_rng(0))


def test_distinct_gives_as_many_neighbours_as_there_are_profiles_a_profile_each() -> None:
    drawn = draw("distinct", 70, 32)
    assert sorted(drawn[:32]) == list(range(32))
    assert list(drawn[32:64]) == list(drawn[:32])


def test_identical_asks_for_one_profile_only() -> None:
    assert set(draw("identical", 100, 32)) == {0}


def test_uniform_favours_nobody() -> None:
    counts = np.bincount(draw("uniform", 32_000, 32), minlength=32)
    assert counts.min() > 800
    assert counts.max() < 1200


def test_zipf_follows_its_power_law() -> None:
    counts = np.bincount(draw("zipf:1.5", 100_000, 32), minlength=32)
    assert counts[0] / counts[1] == pytest.approx(2**1.5, rel=0.05)
    assert counts[0] / counts[3] == pytest.approx(4**1.5, rel=0.1)


def test_skewed_gives_half_of_the_requests_to_one_profile_and_the_rest_to_all_others() -> None:
    counts = np.bincount(draw("skewed", 31_000, 32), minlength=32)
    assert counts[0] == pytest.approx(15_500, rel=0.05)
    assert counts[1:].min() > 400


@pytest.mark.parametrize("text", ["distinct", "uniform", "zipf:1.5", "identical", "skewed"])
def test_one_profile_is_all_there_is_to_draw(text: str) -> None:
    assert set(draw(text, 10, 1)) == {0}


@pytest.mark.parametrize("text", ["distinct", "uniform", "zipf:1.5", "identical", "skewed"])
def test_a_popularity_is_written_as_it_is_read(text: str) -> None:
    assert str(Popularity.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "pareto", "zipf", "zipf:", "zipf:x", "zipf:0", "zipf:-1", "zipf:nan", "uniform:2"]
)
def test_what_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(PopularityInvalid, match=repr(text).replace("'", ".")):
        Popularity.parse(text)


def test_a_list_of_popularities_keeps_its_order() -> None:
    assert [str(each) for each in parse_popularities("identical,zipf:2,distinct")] == [
        "identical",
        "zipf:2",
        "distinct",
    ]


def test_a_popularity_that_is_named_twice_is_refused() -> None:
    with pytest.raises(PopularityInvalid, match=r"names zipf:1\.5 twice"):
        parse_popularities("zipf:1.5,zipf:1.50")

"""Lists of whole numbers, as options have them."""

from __future__ import annotations

import pytest

from xpeft_benchmarks.whole_numbers import NumbersInvalid, parse_whole_numbers


def test_numbers_are_read_in_their_order() -> None:
    assert parse_whole_numbers("concurrency", "32, 1,4096", most=4096) == (32, 1, 4096)


@pytest.mark.parametrize("text", ["", "0", "x", "1,,2", "-3", "1.5", "1e3", "4097"])
def test_what_is_no_number_of_the_range_is_refused_by_option_and_value(text: str) -> None:
    with pytest.raises(NumbersInvalid, match=f"concurrency {text!r}: .* is not a whole number from 1 to 4096"):
        parse_whole_numbers("concurrency", text, most=4096)


def test_each_number_may_be_there_once() -> None:
    with pytest.raises(NumbersInvalid, match="profiles '32,1,032' names a number twice"):
        parse_whole_numbers("profiles", "32,1,032", most=100)

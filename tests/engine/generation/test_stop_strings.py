from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_server.engine.generation.stop_strings import StopStrings


def passed(stop: list[str], pieces: list[str]) -> list[str]:
    """What comes out at each piece, and at the end."""
    strings = StopStrings(stop)
    return [*(strings.push(piece) for piece in pieces), strings.end()]


def cut(text: str, stop: list[str]) -> str | None:
    """The text before the stop that is complete first, of those the longest; None if there is none."""
    for end in range(1, len(text) + 1):
        ends_here = [each for each in stop if text[:end].endswith(each)]
        if ends_here:
            return text[: end - max(map(len, ends_here))]
    return None


def may_begin(text: str, stop: list[str]) -> int:
    """Length of the text's longest end that a stop begins with."""
    return max(n for n in range(len(text) + 1) if n == 0 or any(each.startswith(text[-n:]) for each in stop))


pieces_of_ab = st.lists(st.text("ab", max_size=4), max_size=12)
stops_of_ab = st.lists(st.text("ab", min_size=1, max_size=6), max_size=8)


@given(pieces_of_ab, stops_of_ab)
@settings(max_examples=1000, deadline=None)
def test_it_passes_on_what_is_clear_and_nothing_else(pieces: list[str], stop: list[str]) -> None:
    strings = StopStrings(stop)
    shown = seen = ""
    for piece in pieces:
        seen += piece
        shown += strings.push(piece)
        before = cut(seen, stop)
        assert strings.stopped == (before is not None)
        assert shown == (seen[: len(seen) - may_begin(seen, stop)] if before is None else before)
    rest = strings.end()
    before = cut(seen, stop)
    assert shown + rest == (seen if before is None else before)


def test_a_stop_string_is_found_across_pieces() -> None:
    assert passed(["\n\nUser:"], ["Hi.\n", "\nUs", "er", ": no"]) == ["Hi.", "", "", "", ""]


def test_what_only_looked_like_a_stop_string_comes_when_it_is_clear() -> None:
    assert passed(["</s>"], ["a <", "/", "b>", " </s"]) == ["a ", "", "</b>", " ", "</s"]


def test_the_one_that_is_complete_first_counts_and_of_two_the_longer() -> None:
    assert "".join(passed(["abcd", "bc"], ["xabcd"])) == "xa"
    assert "".join(passed(["bc", "abc"], ["xabcd"])) == "x"
    assert "".join(passed(["abcd", "bc"], ["xab", "y"])) == "xaby"


def test_nothing_comes_after_a_stop_string() -> None:
    strings = StopStrings(["stop"])
    assert strings.push("go stop go") == "go "
    assert strings.stopped
    assert strings.push("on") == strings.end() == ""
    assert strings.stopped


def test_without_stop_strings_all_is_passed_on() -> None:
    assert passed([], ["a", "", "b\n"]) == ["a", "", "b\n", ""]
    assert not StopStrings([]).stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stop: \['a', ''\] has an empty text"):
        StopStrings(["a", ""])


def test_a_long_stop_string_that_is_nearly_there_all_the_time_costs_no_rescans() -> None:
    """Quadratic work would take minutes here."""
    strings = StopStrings(["a" * 20_000 + "b", "a" * 19_999 + "c"])
    start = time.process_time()
    shown = sum(len(strings.push("a")) for _ in range(60_000))
    assert time.process_time() - start < 5
    assert shown == 40_000
    assert len(strings.end()) == 20_000

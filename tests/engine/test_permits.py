from __future__ import annotations

import pytest

from xpeft_server.engine.errors import Overloaded
from xpeft_server.engine.permits import Permits


def test_what_passes_the_limit_is_refused_and_names_both_numbers() -> None:
    permits = Permits(texts=3, tokens=100)
    permits.admit_texts(2)
    with pytest.raises(Overloaded, match="2 texts are waiting and 2 more would pass the limit of 3"):
        permits.admit_texts(2)
    permits.admit_texts(1)


def test_tokens_are_bounded_apart_from_texts() -> None:
    permits = Permits(texts=10, tokens=100)
    permits.admit_tokens(90)
    with pytest.raises(Overloaded, match="90 tokens"):
        permits.admit_tokens(11)


def test_a_request_larger_than_the_limit_is_let_in_when_it_is_alone() -> None:
    permits = Permits(texts=10, tokens=100)
    permits.admit_tokens(500)
    with pytest.raises(Overloaded):
        permits.admit_tokens(1)


def test_what_was_released_can_be_had_again() -> None:
    permits = Permits(texts=1, tokens=10)
    permits.admit_texts(1)
    permits.admit_tokens(10)
    permits.release(texts=1, tokens=10)
    permits.admit_texts(1)
    permits.admit_tokens(10)
    assert (permits.texts, permits.tokens) == (1, 10)

from __future__ import annotations

import pytest

from xpeft_benchmarks.load.exchange import Exchange
from xpeft_benchmarks.load.slo import Slo, SloInvalid, parse_duration


def answered(status: int = 200, **stages: float) -> Exchange:
    return Exchange(0.0, status, 5, stages)


def test_an_answer_counts_if_it_is_200_and_in_time() -> None:
    slo = Slo(0.1)
    assert slo.is_kept(answered(total=0.1))
    assert not slo.is_kept(answered(total=0.101))
    assert not slo.is_kept(Exchange(0.0, 429, 0, {}))
    assert not slo.is_kept(Exchange(0.0, 0, 0, {}))


def test_a_stream_counts_by_its_first_token_and_by_the_time_of_the_others() -> None:
    stream = answered(first_token=0.2, per_token=0.02, total=9.0)
    assert Slo(0.2).is_kept(stream)
    assert not Slo(0.19).is_kept(stream)
    assert Slo(0.2, per_token=0.02).is_kept(stream)
    assert not Slo(0.2, per_token=0.019).is_kept(stream)
    assert Slo(0.2, per_token=0.019).is_kept(answered(first_token=0.2, total=0.2))


def test_limits_are_told_in_milliseconds() -> None:
    assert str(Slo(0.5)) == "500 ms"
    assert str(Slo(0.5, 0.0125)) == "500 ms, 12.5 ms a token"


@pytest.mark.parametrize(("text", "seconds"), [("100ms", 0.1), ("0.5s", 0.5), ("2 s", 2.0), ("250us", 0.00025)])
def test_times_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration("slo", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "100", "ms", "0ms", "-5ms", "1e9ms", "nan s", "5 min"])
def test_a_time_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(SloInvalid, match=f"slo {text!r} is not a time"):
        parse_duration("slo", text)

from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_benchmarks.load.plan import Kind, LoadPlan, RatesInvalid, TargetPlan, TargetsAlike, parse_rates
from xpeft_benchmarks.load.slo import Slo
from xpeft_benchmarks.popularity import Popularity


def plan(*targets: TargetPlan, **changes: object) -> LoadPlan:
    values: dict[str, object] = {
        "targets": targets,
        "kind": Kind.CLASSIFY,
        "rates": (20.0, 40.0),
        "seconds": 1.0,
        "rounds": 1,
        "profiles": 5,
        "popularity": Popularity.parse("zipf:1.1"),
        "texts": 8,
        "slo": Slo(0.1),
        "server": {"--plm": "/models/tiny"},
        "tenants": 2,
        "plm": "/models/tiny",
        "store": "redis://u:secret@host:6379",
    }
    return LoadPlan(**(values | changes))  # type: ignore[arg-type]


def test_rates_are_sorted_numbers_or_left_to_the_benchmark() -> None:
    assert parse_rates("100, 25.5,50") == (25.5, 50.0, 100.0)
    assert parse_rates(" auto") is None


@pytest.mark.parametrize("text", ["", "0", "x", "1,,2", "-3", "nan", "inf", "1e7", "auto,5"])
def test_rates_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(RatesInvalid, match=f"rates {text!r}"):
        parse_rates(text)


def test_a_rate_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(RatesInvalid, match="names a number twice"):
        parse_rates("50,50.0")


def test_settings_have_neither_keys_nor_passwords_nor_folders() -> None:
    asked = plan(TargetPlan("here"), TargetPlan("there", "https://x.example", "xp_key"), lengths=Path("/data/l.csv"))
    settings = asked.settings()
    assert settings["targets"] == {"here": None, "there": "https://x.example"}
    assert settings["server"] == {"store": "redis://***@host:6379", "tenants": "2", "--plm": "tiny"}
    assert settings["lengths"] == "l.csv"
    assert not any(secret in str(settings) for secret in ("xp_key", "secret", "/models", "/data"))


def test_settings_of_a_server_that_was_not_started_are_not_told() -> None:
    assert plan(TargetPlan("there", "http://x")).settings()["server"] == {}


def test_two_targets_need_two_names() -> None:
    with pytest.raises(TargetsAlike, match="both targets are called 'x'"):
        plan(TargetPlan("x", "http://x"), TargetPlan("x", "https://x"))

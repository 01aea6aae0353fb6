"""A thing is new once, and again only when too many others came between."""

from __future__ import annotations

import pytest

from xpeft_profiles import told_once
from xpeft_profiles.told_once import ToldOnce


def test_a_thing_is_new_once() -> None:
    told = ToldOnce[str]()
    assert [told.is_new(each) for each in ("a", "b", "a", "b")] == [True, True, False, False]


def test_no_more_than_so_many_things_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(told_once, "_MOST", 2)
    told = ToldOnce[str]()
    assert [told.is_new(each) for each in ("a", "b", "a", "c", "a")] == [True, True, False, True, True]

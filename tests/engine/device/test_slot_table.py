from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from xpeft_server.engine.device.slot_table import SlotTable
from xpeft_server.engine.metrics import Metrics


def cached(version: str, labels: int = 0) -> Any:
    head = np.zeros((labels, 4)) if labels else None
    return SimpleNamespace(version=version, profile=SimpleNamespace(head_weight=head))


def table(slots: int, head_rows: int = 8) -> SlotTable:
    return SlotTable(slots=slots, head_rows=head_rows, metrics=Metrics())


def test_a_version_is_filled_once_and_then_found() -> None:
    slots = table(2)
    first = slots.place(cached("v1"))
    again = slots.place(cached("v1"))
    assert first is not None
    assert again is not None
    assert (first[1], again[1]) == (True, False)
    assert first[0].slot == again[0].slot


def test_the_least_recently_used_makes_room() -> None:
    slots = table(2)
    for version in ("v1", "v2", "v1"):
        slots.place(cached(version))
        slots.begin_batch()
    assert slots.place(cached("v3"))
    slots.begin_batch()
    found = slots.place(cached("v1"))
    assert found is not None
    assert not found[1], "v1 was used after v2 and must have stayed"


def test_a_crowd_that_is_asked_for_once_passes_by_those_that_are_asked_for_again() -> None:
    slots = table(10)
    for _ in range(2):
        for number in range(8):
            slots.place(cached(f"regular {number}"))
        slots.begin_batch()
    for number in range(100):
        assert slots.place(cached(f"stranger {number}"))
        slots.begin_batch()
    found = [slots.place(cached(f"regular {number}")) for number in range(8)]
    assert [each is not None and each[1] for each in found] == [False] * 8


def test_a_head_that_no_room_is_enough_for_costs_nobody_a_slot() -> None:
    slots = table(2, head_rows=8)
    slots.place(cached("v1"))
    slots.begin_batch()
    assert slots.place(cached("wide", labels=9)) is None
    found = slots.place(cached("v1"))
    assert found is not None
    assert not found[1]


def test_asked_for_many_times_by_one_batch_is_asked_for_once() -> None:
    slots = table(2)
    for version in ("v1", "v1", "v1", "v2"):
        slots.place(cached(version))
    slots.begin_batch()
    assert slots.place(cached("v3"))
    slots.begin_batch()
    found = slots.place(cached("v1"))
    assert found is not None
    assert found[1], "v1 is older than v2 and no more proven"


def test_nothing_that_the_batch_needs_is_evicted() -> None:
    slots = table(2)
    slots.place(cached("v1"))
    slots.place(cached("v2"))
    assert slots.place(cached("v3")) is None
    slots.begin_batch()
    assert slots.place(cached("v3"))


def test_label_rows_of_two_residents_never_overlap_and_come_back() -> None:
    slots = table(4, head_rows=6)
    one, two = slots.place(cached("v1", 3)), slots.place(cached("v2", 3))
    assert one is not None
    assert two is not None
    assert not set(one[0].head_rows) & set(two[0].head_rows)
    assert slots.place(cached("v3", 1)) is None
    slots.begin_batch()
    three = slots.place(cached("v3", 1))
    assert three is not None
    assert set(three[0].head_rows) <= set(one[0].head_rows)


def test_a_head_wider_than_all_rows_is_never_placed() -> None:
    assert table(2, head_rows=4).place(cached("wide", 5)) is None


def test_a_fill_that_failed_is_forgotten() -> None:
    slots = table(1, head_rows=2)
    slots.place(cached("v1", 2))
    slots.forget(["v1"])
    again = slots.place(cached("v1", 2))
    assert again is not None
    assert again[1]

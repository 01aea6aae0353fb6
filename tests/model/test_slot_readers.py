from __future__ import annotations

import numpy as np

from xpeft_server.model.lanes import Mark
from xpeft_server.model.slot_readers import SlotReaders

NOBODY = np.empty(0, np.int64)


class Moment:
    passed = False

    def wait(self) -> None: ...

    def seconds_since(self, earlier: Mark) -> float:
        raise NotImplementedError


def test_the_last_of_several_readers_is_waited_for() -> None:
    readers, first, second, third = SlotReaders(), Moment(), Moment(), Moment()
    readers.add(np.array([1, 2]), NOBODY, first)
    readers.add(np.array([2, 3]), np.array([7]), second)
    readers.add(np.array([4]), NOBODY, third)
    assert readers.last_of(np.array([1]), NOBODY) is first
    assert readers.last_of(np.array([1, 2]), NOBODY) is second
    assert readers.last_of(np.array([9]), np.array([7])) is second
    assert readers.last_of(np.array([9]), np.array([1])) is None


def test_who_is_done_is_forgotten() -> None:
    readers, first, second = SlotReaders(), Moment(), Moment()
    readers.add(np.array([1]), NOBODY, first)
    readers.add(np.array([1]), NOBODY, second)
    first.passed = True
    assert readers.last_of(np.array([1]), NOBODY) is second
    second.passed = True
    assert readers.last_of(np.array([1]), NOBODY) is None
    assert not readers._reads

"""CUDA graphs by the size of what they compute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

import torch

from ..device_memory import is_out_of_memory
from ..lanes import Lanes

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES: Final = 2.0

Size = TypeVar("Size", bound=Hashable)
Static = TypeVar("Static")


class Captured(NamedTuple, Generic[Static]):
    """Static inputs, and what computes with them."""

    inputs: Static
    repeat: Callable[[], None]


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """How many graphs there are, for how many tokens at the most, and the device memory that they take."""

    graphs: int = 0
    tokens: int = 0
    bytes: int = 0


class GraphSet(Generic[Size, Static]):
    """All of them share one pool of memory, as they never run at once.

    Args:
        what: they compute, for logs.
    """

    def __init__(self, lanes: Lanes, device: torch.device, what: str) -> None:
        self._lanes = lanes
        self._device = device
        self._what = what
        self._captured: dict[Size, Captured[Static]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._captured)

    def __contains__(self, size: object) -> bool:
        return size in self._captured

    def __iter__(self) -> Iterator[Size]:
        """Sizes, in the order in which they were captured."""
        return iter(self._captured)

    def __getitem__(self, size: Size) -> Captured[Static]:
        return self._captured[size]

    def capture(self, sizes: Sequence[Size], prepare: Callable[[Size], Captured[Static]]) -> None:
        """Capture what ``prepare`` made ready for each size, the largest first: the others fit into its memory.

        What the device has no room for is left out: it is launched operator by operator.

        Args:
            sizes: largest first.
            prepare: static inputs that hold something that can be computed, and the computation.
        """
        began = told = time.monotonic()
        before = self._free()
        for number, size in enumerate(sizes, 1):
            try:
                self._captured[size] = self._graph(prepare(size))
            except (RuntimeError, MemoryError) as error:
                if not _wants_memory(error):
                    raise
                logger.warning("no CUDA graph for %s of %s: %s", self._what, size, error)
                continue
            if time.monotonic() - told > _SECONDS_BETWEEN_LINES:
                told = time.monotonic()
                logger.info("captured %d of %d CUDA graphs for %s", number, len(sizes), self._what)
        self.bytes += before - self._free()
        seconds = time.monotonic() - began
        message = "captured %d CUDA graphs for %s in %.1f s; all take %.0f MB"
        logger.info(message, len(self), self._what, seconds, self.bytes / 1e6)

    def _graph(self, ready: Captured[Static]) -> Captured[Static]:
        # Once by itself, so that what libraries do at first use is no part of the graph.
        ready.repeat()
        self._lanes.synchronize()
        return ready._replace(repeat=self._lanes.graph(ready.repeat))

    def _free(self) -> int:
        """Bytes of the device that nobody holds, the allocator included."""
        if self._device.type != "cuda":
            return 0
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self._device)[0])


def _wants_memory(error: BaseException) -> bool:
    """A capture that ran out of memory may not be ended either, which is another error."""
    return any(each is not None and is_out_of_memory(each) for each in (error, error.__context__))

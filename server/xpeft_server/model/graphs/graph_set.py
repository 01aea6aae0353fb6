"""CUDA graphs by input size."""

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
    """Static inputs, and the computation on them."""

    inputs: Static
    repeat: Callable[[], None]


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """Number of graphs, tokens of the largest, and the device memory of all."""

    graphs: int = 0
    tokens: int = 0
    bytes: int = 0


class GraphSet(Generic[Size, Static]):
    """They share one memory pool, because they never run at once.

    Args:
        what: is computed, for logs.
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
        """Capture a graph for each size, the largest first, so that the others fit into its memory.

        Sizes that the device has no room for are left out; they are launched operator by operator.

        Args:
            sizes: largest first.
            prepare: returns static inputs with valid contents, and the computation.
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
        # Run once before, so that what libraries do at first use does not become part of the graph.
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
    """Whether the capture ran out of memory: ending it may then fail, too, with another error."""
    return any(each is not None and is_out_of_memory(each) for each in (error, error.__context__))

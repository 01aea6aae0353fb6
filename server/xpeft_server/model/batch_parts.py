"""A batch in parts that threads compute side by side, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from threading import Barrier
from typing import Final, NamedTuple, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")

LEAST_TOKENS: Final = 64
"""Of a part. Threads that share the products of a smaller one are as fast (MiniLM, two cores)."""

MOST_UNEVEN: Final = 1.1
"""How much longer than the mean the longest part may be: what parts save, waiting for that one must not cost."""


class Part(NamedTuple):
    """Texts ``begin`` to ``end`` of a batch in packed order."""

    begin: int
    end: int


class PartThreads:
    """As many threads as PyTorch uses, each of which computes by itself, without others'.

    Threads that share a product are done when the last of them is, and between two products all but one wait: whatever
    takes a core for a moment holds up all cores, some hundred times in a batch. Sequences never meet, so threads that
    compute some sequences each meet once. A thread of PyTorch's own number of threads, for which it would take others,
    is whoever makes this one.
    """

    def __init__(self) -> None:
        shared = self.count = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="part")
        all_there = Barrier(self.count)
        wait([self._pool.submit(_alone, all_there) for _ in range(self.count)])
        torch.set_num_threads(shared)  # the last thread's word holds for all that come after

    def cut(self, lengths: Sequence[int]) -> list[Part]:
        """One part a thread, of neighbours, or none at all where that would not be faster.

        Args: lengths: tokens of each text in packed order.
        """
        if len(lengths) < self.count:
            return []
        until = np.cumsum(lengths)
        each = until[-1] / self.count
        # Where the text begins or ends that lies across the border, whichever is nearer.
        borders = np.searchsorted(until - np.array(lengths) / 2, each * np.arange(1, self.count))
        parts = [Part(*each) for each in zip([0, *borders.tolist()], [*borders.tolist(), len(lengths)], strict=True)]
        tokens = [sum(lengths[part.begin : part.end]) for part in parts]
        return parts if min(tokens) >= LEAST_TOKENS and max(tokens) <= MOST_UNEVEN * each else []

    def compute(self, parts: Sequence[Part], result_of: Callable[[Part], Result]) -> list[Result]:
        """The results of all parts, computed without gradients. Raises: what the first one that failed raised."""
        running = [self._pool.submit(partial(_inferred, result_of, part)) for part in parts]
        wait(running)
        return [each.result() for each in running]


def _alone(all_there: Barrier) -> None:
    """A thread of the pool; waits for the others, so that each of them gets here."""
    torch.set_num_threads(1)
    all_there.wait()


@torch.inference_mode()
def _inferred(result_of: Callable[[Part], Result], part: Part) -> Result:
    return result_of(part)

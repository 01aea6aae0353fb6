"""Lanes of a GPU: CUDA streams, events and graphs. Nothing here waits but `CudaMark.wait` and `synchronize`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .lanes import Mark, on_device


class CudaMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    @property
    def passed(self) -> bool:
        return self.event.query()  # type: ignore[no-untyped-call, no-any-return]

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, CudaMark)  # noqa: S101
        return earlier.event.elapsed_time(self.event) / 1000  # type: ignore[no-any-return]


class CudaLanes:
    """The current stream, and one for fills. Kept graphs share one memory pool, because they never run at once.

    Copies leave from pinned memory, which PyTorch reuses once a copy is done.
    """

    asynchronous = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._fills = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._sharing: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._unended: list[torch.cuda.CUDAGraph] = []

    def mark(self) -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return CudaMark(event)

    @contextmanager
    def filling(self, *, after: Sequence[Mark] | None) -> Iterator[None]:
        main = torch.cuda.current_stream(self._device)
        if after is None:
            self._fills.wait_stream(main)
        for mark in after or ():
            assert isinstance(mark, CudaMark)  # noqa: S101
            self._fills.wait_event(mark.event)
        try:
            with torch.cuda.stream(self._fills):
                yield
        finally:
            main.wait_stream(self._fills)

    def upload(self, values: NDArray[np.generic]) -> Tensor:
        return on_device(values, self._device)

    def download(self, values: Tensor) -> Tensor:
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    def staging(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def graph(self, run: Callable[[], None], *, kept: bool = True) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        main = torch.cuda.current_stream(self._device)
        if not self._sharing:
            # PyTorch cannot reuse a pool whose last graph is gone.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            # A capture that cannot be ended leaves its own stream current.
            with torch.cuda.stream(main), torch.cuda.graph(graph, pool=self._pool if kept else None):
                run()
        except BaseException:
            if not _has_ended(graph):
                # The allocator goes on calling it, so it must live on, and allows no other capture into its pool.
                self._unended.append(graph)
                if kept:
                    self._sharing = WeakSet()
            raise
        if kept:
            self._sharing.add(graph)
        return graph.replay

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)


def _has_ended(graph: torch.cuda.CUDAGraph) -> bool:
    """Whether its capture was ended, however it went: only then is its pool closed."""
    try:
        graph.pool()
    except RuntimeError:
        return False
    return True

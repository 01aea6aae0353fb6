"""The order of work on a device: batches one after the other, slot fills beside them, copies that nobody waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Mark(Protocol):
    """A moment on the device: everything launched before it is done."""

    @property
    def passed(self) -> bool: ...

    def wait(self) -> None:
        """Raises: RuntimeError if something launched before it failed."""
        ...

    def seconds_since(self, earlier: Mark) -> float:
        """Both must have passed."""
        ...


class Lanes(Protocol):
    """The main lane runs launches in order; slot fills have a lane of their own beside it.

    Attributes:
        asynchronous: whether a launch returns before its work is done.
    """

    asynchronous: bool

    def mark(self) -> Mark:
        """A mark on the main lane, or within `filling` on the lane of fills."""
        ...

    def filling(self, *, after: Sequence[Mark] | None) -> AbstractContextManager[None]:
        """Launches within run beside the main lane, behind ``after``; later launches on the main lane wait for them.

        Args:
            after: None: behind everything launched before.
        """
        ...

    def upload(self, values: NDArray[np.generic]) -> Tensor:
        """``values`` on the device, in the order of the lane; on the host the same memory."""
        ...

    def download(self, values: Tensor) -> Tensor:
        """A copy on the host, valid once a mark made afterwards has passed."""
        ...

    def staging(self, size: int) -> Tensor:
        """``[size]`` uint8 host memory to upload from; it lives as long as a copy needs it."""
        ...

    def graph(self, run: Callable[[], None], *, kept: bool = True) -> Callable[[], None]:
        """``run`` captured, to be repeated on the same tensors without its Python. It must have run once before.

        Args:
            kept: it shares one memory pool with the other kept graphs; False for a trial.
        Raises: RuntimeError if the device has no room for it.
        """
        ...

    def synchronize(self) -> None:
        """Wait for everything on all lanes."""
        ...


class _Stamp:
    """On a synchronous device a mark has passed when it is made."""

    def __init__(self) -> None:
        self.at = time.perf_counter()

    passed = True

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, _Stamp)  # noqa: S101
        return self.at - earlier.at


class HostLanes:
    """The CPU: everything is done when it is called."""

    asynchronous = False

    def mark(self) -> Mark:
        return _Stamp()

    def filling(self, *, after: Sequence[Mark] | None) -> AbstractContextManager[None]:
        return nullcontext()

    def upload(self, values: NDArray[np.generic]) -> Tensor:
        return on_device(values, "cpu")

    def download(self, values: Tensor) -> Tensor:
        return values

    def staging(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def graph(self, run: Callable[[], None], *, kept: bool = True) -> Callable[[], None]:
        return run

    def synchronize(self) -> None:
        pass


def on_device(values: NDArray[np.generic], device: torch.device | str) -> Tensor:
    """The array as a tensor; on a GPU an asynchronous copy from pinned memory."""
    # PyTorch warns of read-only arrays, such as a profile's.
    host = torch.from_numpy(np.require(values, requirements=["C", "W"]))
    if torch.device(device).type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def lanes_of(device: torch.device) -> Lanes:
    """One set for each classifier and its slots."""
    if device.type != "cuda":
        return HostLanes()
    from .cuda_lanes import CudaLanes

    return CudaLanes(device)

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from xpeft_server.model.graphs.graph_set import Captured, GraphSet
from xpeft_server.model.lanes import HostLanes

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    MemoryError(),
)


class InvalidatingLanes(HostLanes):
    """A capture that failed cannot be ended, as on a GPU."""

    def graph(self, run: Callable[[], None], *, kept: bool = True) -> Callable[[], None]:
        try:
            run()
        except Exception:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        return run


def captured(error: Exception, *, first: bool = True, lanes: HostLanes | None = None) -> list[int]:
    """Sizes that have a graph where that of size 4 fails when it is run ``first``, or when it is captured."""
    graphs = GraphSet[int, None](lanes or HostLanes(), torch.device("cpu"), "nothing")

    def prepared(size: int) -> Captured[None]:
        calls = 0

        def run() -> None:
            nonlocal calls
            calls += 1
            if size == 4 and (first or calls > 1):
                raise error

        return Captured(None, run)

    graphs.capture([8, 4, 2], prepared)
    return list(graphs)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_what_the_device_has_no_room_for_is_left_out_whoever_says_so(error: Exception) -> None:
    assert captured(error) == [8, 2]
    assert captured(error, first=False, lanes=InvalidatingLanes()) == [8, 2]


def test_other_failures_are_not_hidden() -> None:
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        captured(error)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        captured(error, first=False, lanes=InvalidatingLanes())

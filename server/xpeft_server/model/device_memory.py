"""How it looks when the device has no memory left, and what then helps."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from .errors import ModelUnusable

# Where it is a plain RuntimeError: what torch's allocators for CPUs say, and libraries on CUDA that have their own.
_WORDS: Final = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time may go where this did not."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


@contextmanager
def room_for(what: str, device: torch.device | str) -> Iterator[None]:
    """Around what is kept on ``device`` from the start on.

    Args:
        what: the setting, and how many bytes it takes.
    Raises: ModelUnusable if the device has no memory for so many.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ModelUnusable(f"{what}, which {device} has no memory for") from error


def reclaim_memory(error: BaseException) -> None:
    """Let go of the tensors that ``error`` keeps alive in its frames and, on CUDA, of blocks kept for later."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()

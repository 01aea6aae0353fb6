"""Whether the device can go on after an error."""

from __future__ import annotations

from typing import Final

import torch

from xpeft_server.model.device_memory import is_out_of_memory

# How errors of the CUDA runtime and driver begin, whichever library reports them.
_WORDS: Final = ("CUDA error", "CUDA driver error", "Triton Error [CUDA]", "cuBLAS error", "CUBLAS_STATUS")


def is_device_lost(error: BaseException) -> bool:
    """Whether the error leaves a device with which this process can compute nothing any more.

    After such an error CUDA fails every later call, so one is tried.
    """
    if is_out_of_memory(error) or not any(words in str(error) for words in _WORDS):
        return False
    try:
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        return True
    return False

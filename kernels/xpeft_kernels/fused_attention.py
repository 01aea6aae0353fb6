"""Which of PyTorch's own kernels attention may take."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def without_cudnn(device: torch.device) -> AbstractContextManager[object]:
    """A context in which attention is not cuDNN's, which PyTorch prefers in half precision on sm_90 and sm_100.

    cuDNN may have no plan for a shape, or for a mask that all queries share, and then fails at launch.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])

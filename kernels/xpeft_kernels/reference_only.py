"""What only the references compute, and the Triton kernels refuse."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refuse_gradients(operator: str, *tensors: Tensor) -> None:
    """Raises: ValueError if a gradient is asked for of any of them."""
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        raise ValueError(f"{operator} has no gradient in Triton: ask for impl=Impl.REFERENCE")


def refuse_dtypes(operator: str, dtype: torch.dtype) -> None:
    """Raises: ValueError but for float32, float16 and bfloat16."""
    if dtype not in _DTYPES:
        raise ValueError(f"{operator} has no {dtype} in Triton: ask for impl=Impl.REFERENCE")

"""Weights in oneDNN's own layout, for processes that only infer on a CPU."""

from __future__ import annotations

import logging
import platform
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from .plm import Plm

logger = logging.getLogger(__name__)

_MACHINES: Final = ("x86_64", "AMD64")


class PrepackedLinear(nn.Module):
    """``x W.T + b`` by a weight that is kept in oneDNN's order alone. No gradient passes.

    A product with a plain weight reorders it on every call, which costs as much as multiplying a few dozen rows by it.
    From two rows on, a row's bits do not depend on how many rows there are.

    Args: weight: ``[out, in]``; bias: ``[out]``; float32 or bfloat16.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.bias = bias
        # torch.compile's frozen graphs use these operators; PyTorch has no public name for them.
        self._multiply = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001
        # Not a buffer: code that walks over a module's tensors cannot read this one.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())  # noqa: SLF001

    def forward(self, rows: Tensor) -> Tensor:
        """``[…, in]`` → ``[…, out]``. Raises: NotImplementedError where a gradient would have to pass."""
        if torch.is_grad_enabled() and rows.requires_grad:
            raise NotImplementedError("a prepacked product has no gradient; tune over a model that is not prepacked")
        return cast(Tensor, self._multiply(rows, self._packed, self.bias, "none", [], ""))


def prepack(plm: Plm) -> None:
    """Replace the weights of all products of a PLM on a CPU, whose gradients cannot be asked for any more.

    Other devices keep theirs, and so do CPUs for which PyTorch's oneDNN has no such products; the log says so.
    """
    if plm.device.type != "cpu":
        return
    reason = _why_not(plm.dtype)
    if reason is not None:
        logger.info("weights are multiplied as they were loaded: %s", reason)
        return
    names = [name for name, each in plm.model.named_modules() if isinstance(each, nn.Linear | Conv1D)]
    for name in names:  # one at a time, so that there is never more than one weight twice
        each = cast(nn.Linear | Conv1D, plm.model.get_submodule(name))
        weight = each.weight if isinstance(each, nn.Linear) else each.weight.T
        plm.model.set_submodule(name, PrepackedLinear(weight, each.bias), strict=True)
    if plm.vocabulary_head is not None:
        plm.vocabulary_head.prepack()
    logger.info("weights of %d products are kept in oneDNN's order", len(names) + (plm.vocabulary_head is not None))


def _why_not(dtype: torch.dtype) -> str | None:
    """What stands in the way."""
    if platform.machine() not in _MACHINES:
        return f"oneDNN's order is not tried on {platform.machine()}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this PyTorch has no oneDNN"
    if dtype == torch.float32:
        return None
    if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():  # noqa: SLF001
        return None
    return f"oneDNN does not multiply {str(dtype).removeprefix('torch.')} on this CPU"

"""Attention over packed sequences on a GPU, by our kernel or by PyTorch's."""

from __future__ import annotations

import enum
import inspect
from typing import Any

from torch import Tensor

from xpeft_kernels import Impl, PlacedSequences, Sequences, attend_packed


class AttentionKernel(enum.Enum):
    """``OURS`` is `attend_packed` as its operator chooses; ``TRITON`` orders its kernel, for tests;
    ``VARLEN`` is torch.nn.attention.varlen, which takes half precision only.
    """

    OURS = "attend_packed"
    TRITON = "attend_packed in Triton"
    VARLEN = "torch.nn.attention.varlen"

    def shown(self) -> dict[str, str]:
        """What /info says beside the operators, where it is none of them."""
        return {} if self is AttentionKernel.OURS else {"attend_packed": self.value}


class PackedSequences:
    """The sequences of a packed row, for attention that finds them by a table on the device.

    Args:
        bounds: ``[Q + 1]`` int32, first row of each sequence and the row behind the last.
        longest: tokens that no sequence exceeds.
    """

    def __init__(
        self,
        sequences: Sequences | PlacedSequences,
        bounds: Tensor | None,
        longest: int,
        kernel: AttentionKernel = AttentionKernel.OURS,
    ) -> None:
        self._sequences = sequences
        self._bounds = bounds
        self._longest = longest
        self._kernel = kernel

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None, causal: bool
    ) -> Tensor:
        """``[1, heads, T, d]``, key and value perhaps with fewer heads → ``[1, T, heads, d]``."""
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        if self._kernel is AttentionKernel.VARLEN:
            assert self._bounds is not None  # noqa: S101
            return _varlen(q, k, v, self._bounds, self._longest, scaling, window, causal)[None]
        impl = Impl.TRITON if self._kernel is AttentionKernel.TRITON else Impl.AUTO
        return attend_packed(q, k, v, self._sequences, scale=scaling, causal=causal, window=window, impl=impl)[None]


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None, causal: bool
) -> Tensor:
    """``[T, heads, d]``. A window of PyTorch's names how far is seen, ours what is not seen any more."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window - 1
    options: dict[str, Any] = {"scale": scale, "window_size": (reach, 0 if causal else reach)}
    if q.shape[1] != k.shape[1] and "enable_gqa" in inspect.signature(varlen_attn).parameters:
        options["enable_gqa"] = True
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **options)
    assert isinstance(out, Tensor)  # noqa: S101
    return out

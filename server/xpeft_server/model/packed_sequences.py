"""Attention over packed sequences on a GPU: by our kernel or by PyTorch's, whichever is faster there."""

from __future__ import annotations

import enum
import inspect
import logging
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from xpeft_kernels import Impl, PlacedSequences, Sequences, attend_packed

from .errors import ModelUnusable
from .lanes import Lanes

if TYPE_CHECKING:
    from .plm import Plm

logger = logging.getLogger(__name__)

_ROUNDS: Final = 7
_CALLS: Final = 10
_SEQUENCES: Final = 32
_LENGTH: Final = 64


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


def choose_attention(plm: Plm, lanes: Lanes) -> AttentionKernel:
    """The faster one for 32 sequences of 64 tokens, by trying both; in float32, and on CPU, there is only ours."""
    if plm.device.type != "cuda" or plm.dtype == torch.float32:
        return AttentionKernel.OURS
    tokens = _SEQUENCES * _LENGTH
    heads, kv_heads, size = plm.attention_shape
    sequences = Sequences.of([_LENGTH] * _SEQUENCES, plm.device)
    bounds = torch.arange(0, tokens + 1, _LENGTH, dtype=torch.int32, device=plm.device)
    query = torch.randn(1, heads, tokens, size, dtype=plm.dtype, device=plm.device)
    key = torch.randn(1, kv_heads, tokens, size, dtype=plm.dtype, device=plm.device)
    longest = min(plm.tokenizer.limit, tokens)

    def run(kernel: AttentionKernel) -> None:
        packed = PackedSequences(sequences, bounds, longest, kernel)
        for _ in range(_CALLS):
            packed.attend(query, key, key, scaling=None, window=None, causal=plm.family.decoder)

    seconds: dict[AttentionKernel, float] = {}
    for kernel in (AttentionKernel.OURS, AttentionKernel.VARLEN):
        try:
            seconds[kernel] = _seconds(lanes, partial(run, kernel))
        except (ImportError, NotImplementedError, RuntimeError) as error:
            logger.warning("attention by %s cannot be had here: %s", kernel.value, error)
    if not seconds:
        raise ModelUnusable("plm: no kernel for attention over packed sequences runs on this device")
    chosen = min(seconds, key=seconds.__getitem__)
    tried = ", ".join(f"{kernel.value} {each * 1e6:.1f} µs" for kernel, each in seconds.items())
    logger.info("attention runs by %s (%d sequences of %d tokens: %s)", chosen.value, _SEQUENCES, _LENGTH, tried)
    return chosen


def _seconds(lanes: Lanes, run: Callable[[], None]) -> float:
    """Of one call, as a graph repeats it: the median of some rounds."""
    run()
    repeat = lanes.graph(run)
    found = []
    for _ in range(_ROUNDS):
        began = lanes.mark()
        repeat()
        ended = lanes.mark()
        ended.wait()
        found.append(ended.seconds_since(began) / _CALLS)
    return median(found)

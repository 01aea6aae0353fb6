"""Attention of one step: every new token sees only its own sequence's row in the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xpeft_kernels import visible_keys

from ..lanes import on_device

if TYPE_CHECKING:
    from .cache import KvPool, KvRow

Row = TypeVar("Row")
"""A sequence's place in its store."""


class Run(NamedTuple, Generic[Row]):
    """A sequence's new tokens in a step: ``length`` packed tokens from ``start``, behind ``past`` cached ones."""

    row: Row
    start: int
    length: int
    past: int


class KvStep:
    """Where each packed token's key and value go, and what its query sees. Made once a step, used by every block.

    The decodes of a pool share one product over all its rows, however long their pasts; longer runs are computed one by
    one. Either way the bits of a sequence's answer depend on its own tokens alone: the length of a row follows from its
    sequence, and other rows enter no sum.

    Args:
        runs: all real tokens of the step; packed tokens behind them are filler, which nothing sees or stores.
    """

    def __init__(self, runs: Sequence[Run[KvRow]], device: torch.device) -> None:
        single = [run for run in runs if run.length == 1]
        pools = {id(run.row.pool): run.row.pool for run in single}
        self._long = [run for run in runs if run.length > 1]
        self._single = [
            _PoolStep(pool, [run for run in single if run.row.pool is pool], device) for pool in pools.values()
        ]

    def attend(
        self, block: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """Write the new keys and values, then softmax(q Kᵀ · scaling) V for each new token over its row up to itself.

        Args:
            query: ``[1, heads, T, d]``; key and value may have fewer heads (grouped queries).
            window: tokens at this distance or more are not seen.
        Returns: ``[1, T, heads, d]``; filler gets zeros.
        """
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        scale = q.shape[-1] ** -0.5 if scaling is None else scaling
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        for pool in self._single:
            pool.attend(block, q, k, v, out, scale, window)
        for run in self._long:
            _attend_run(run, block, q, k, v, out, scale, window)
        return out[None]


def _attend_run(
    run: Run[KvRow], block: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, window: int | None
) -> None:
    new = slice(run.start, run.start + run.length)
    end = run.past + run.length
    row = run.row.pool.states[block, :, run.row.index]
    row[0, :, run.past : end] = k[new].transpose(0, 1)
    row[1, :, run.past : end] = v[new].transpose(0, 1)
    mask = _mask(run.past, end, window, q.device)
    seen = scaled_dot_product_attention(
        q[new].transpose(0, 1)[None],
        row[None, 0, :, :end],
        row[None, 1, :, :end],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    out[new] = seen[0].transpose(0, 1)


def _mask(past: int, end: int, window: int | None, device: torch.device) -> Tensor | None:
    """``[new, end]`` bool; None for the plain triangle."""
    if not past and (window is None or end <= window):
        return None
    return visible_keys(end, device, causal=True, window=window, past=past)


class _PoolStep:
    """The decodes of one pool's sequences. Its other rows are computed, too, and their results are not read.

    Query heads that share a key take the place of query tokens here, so that keys are not repeated.
    """

    def __init__(self, pool: KvPool, runs: Sequence[Run[KvRow]], device: torch.device) -> None:
        rows = np.array([run.row.index for run in runs])
        asking = np.zeros(len(pool.rows), np.int64)
        asking[rows] = [run.start for run in runs]
        past = np.zeros(len(pool.rows), np.int64)
        past[rows] = [run.past for run in runs]
        self._states = pool.states
        self._rows = on_device(rows, device)
        self._tokens = on_device(asking[rows], device)
        self._positions = on_device(past[rows], device)
        self._asking = on_device(asking, device)
        self._past = on_device(past, device)
        self._biases: dict[int | None, Tensor] = {}

    def attend(
        self, block: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float, window: int | None
    ) -> None:
        keys, values = self._states[block]
        keys[self._rows, :, self._positions] = k[self._tokens]
        values[self._rows, :, self._positions] = v[self._tokens]
        heads = keys.shape[1]
        asking = (q[self._asking] * scale).view(len(self._asking), heads, -1, q.shape[2])
        weights = (torch.matmul(asking, keys.mT) + self._bias(window, q.dtype)).softmax(dim=-1)
        out[self._tokens] = torch.matmul(weights, values).flatten(1, 2)[self._rows]

    def _bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """``[rows, 1, 1, length]``: 0 for what a row's query sees, else -inf."""
        if window not in self._biases:
            position = torch.arange(self._states.shape[4], device=self._past.device)
            distance = self._past[:, None] - position
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._biases[window] = bias[:, None, None]
        return self._biases[window]

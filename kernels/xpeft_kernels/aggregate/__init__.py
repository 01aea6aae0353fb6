"""Masks × bank: a profile's adapters, materialised into its slot."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Impl, Operator, deferred
from .launch import PROFILE_TILES
from .reference import aggregate_adapters_ref

AGGREGATE = Operator(
    "aggregate_adapters",
    {Impl.REFERENCE: aggregate_adapters_ref, Impl.TRITON: deferred(f"{__name__}.kernel", "aggregate_adapters_triton")},
)


def aggregate_adapters(
    bank: Tensor, masks: Tensor, slots: Tensor, slot_ids: Tensor, *, split: int, impl: Impl = Impl.AUTO
) -> None:
    """Add up the adapters that each profile's masks select, for all blocks, straight into the profiles' slots.

    Semantics (a, b = rows of ``masks`` as weights: bits / number of bits set, or the soft values themselves)::

        slots[l, slot_ids[p], :split]  = sum(a[p, l, n] * bank[l, n, :split]  for n in range(N))
        slots[l, slot_ids[p], split:D] = sum(b[p, l, n] * bank[l, n, split:]  for n in range(N))

    Args:
        bank: ``[L, N, D]`` rows of `AdapterForm`, floating point.
        masks: ``[P, 2, L, ceil(N / 8)]`` uint8 little-endian bits (hard), or ``[P, 2, L, N]`` floating (soft).
        slots: ``[L, S, D']`` with D' ≥ D, floating point; written in place, other slots untouched.
        slot_ids: ``[P]`` int64, all different.
        split: where mask a's part of a row ends.
    Raises: ValueError if shapes or the masks' dtype do not fit.
    Accumulated in float32; X-PEFT (arXiv 2401.16137), section 3.
    """
    AGGREGATE(bank.device.type, impl)(bank, masks, slots, slot_ids, split=split)


__all__ = ["AGGREGATE", "PROFILE_TILES", "aggregate_adapters", "aggregate_adapters_ref"]

"""Attention of new tokens over their sequences' keys and values in a cache, as one grouped operation."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Impl, Operator, deferred
from .launch import spare_pieces, step_rows
from .reference import attend_cache_ref
from .steps import SPAN, PlacedSteps, StepRoom, Steps, cut_steps

ATTEND_CACHE = Operator(
    "attend_cache",
    {Impl.REFERENCE: attend_cache_ref, Impl.TRITON: deferred(f"{__name__}.kernel", "attend_cache_triton")},
)


def attend_cache(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    steps: PlacedSteps,
    *,
    scale: float,
    window: int | None = None,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Every new token over what its sequence has in the cache, up to itself.

    Semantics, for every piece (first, count, base, past, …), i in range(count), head h, and g = heads / kv_heads::

        p           = past + i                                   # the token's place in its sequence
        seen        = range(max(0, p - window + 1), p + 1)       # without a window: range(p + 1)
        w           = softmax(scale * dot(query[first + i, h], keys[base + j, h // g]) for j in seen)
        out[first + i, h] = sum(w[j] * values[base + j, h // g] for j in seen)

    The kernel's bits of a sequence depend on its own values and the places of its tokens alone: not on the other
    pieces, nor on ``base``, nor on how its new tokens and its keys are cut into pieces and steps. Every piece goes
    through the same program, which adds up keys span by span (see `SPAN`), in blocks that are counted from the
    sequence's first; spans are joined in their order by one formula, be it in the program itself or, of a sequence
    whose spans are in several pieces, in a second one. The reference guarantees the first two; cut otherwise, its
    products have other shapes and perhaps other last bits.

    Args:
        query: ``[T, heads, d]``, the new tokens of all sequences; any strides but the last, which is 1.
        keys, values: ``[tokens, kv_heads, d]`` likewise, one block's cache; the new tokens' own are in it already. Rows
            that nobody sees are not read.
        steps: as `cut_steps` makes them: pieces of at most `step_rows` query rows, as the kernel computes no more.
        window: tokens at this distance or more are not seen.
    Returns: ``[T, heads, d]``, contiguous, dtype of ``query``; sums are accumulated in float32. Rows that no piece
        covers are not written: they are whatever lay in that memory.
    Raises: ValueError if shapes, strides or dtypes do not fit.
    """
    return ATTEND_CACHE(query.device.type, impl)(query, keys, values, steps, scale=scale, window=window)  # type: ignore[no-any-return]


__all__ = [
    "ATTEND_CACHE",
    "SPAN",
    "PlacedSteps",
    "StepRoom",
    "Steps",
    "attend_cache",
    "attend_cache_ref",
    "cut_steps",
    "spare_pieces",
    "step_rows",
]

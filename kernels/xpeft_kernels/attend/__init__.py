"""Attention over packed rows: every sequence sees itself and nobody else."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Impl, Operator, deferred
from ..sequences import PlacedSequences, Sequences
from .launch import query_rows
from .reference import attend_packed_ref

ATTEND = Operator(
    "attend_packed",
    {Impl.REFERENCE: attend_packed_ref, Impl.TRITON: deferred(f"{__name__}.kernel", "attend_packed_triton")},
)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences | PlacedSequences,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """Scaled dot-product attention within each sequence.

    Semantics, for every row t and head h, over the rows u of t's sequence that t sees (g = heads / kv_heads)::

        weight[u] = softmax over u of scale * dot(query[t, h], key[u, h // g])
        out[t, h] = sum(weight[u] * value[u, h // g])

    Args:
        query: ``[T, heads, d]``; key, value: ``[T, kv_heads, d]``, heads a multiple of kv_heads. Any strides but the
            last, which is 1. The kernel takes d up to 256 in float32, float16 and bfloat16.
        sequences: end to end, all T rows; for the kernel also pieces that are on the device already, cut for
            `query_rows`. Rows that none of those covers are not written.
        scale: d ** -0.5 unless given.
        causal: a row sees itself and earlier ones, not later ones.
        window: rows at a distance of ``window`` or more are not seen, on either side.
    Returns: ``[T, heads, d]``, contiguous, dtype of ``query``; sums accumulate in float32.
    Raises: ValueError if shapes, dtypes or strides do not fit, window < 1, or the reference gets placed pieces.
    Softmax on the way: FlashAttention (arXiv 2205.14135), algorithm 1; grouped queries: arXiv 2305.13245.
    """
    return ATTEND(query.device.type, impl)(  # type: ignore[no-any-return]
        query, key, value, sequences, scale=scale, causal=causal, window=window
    )


__all__ = ["ATTEND", "attend_packed", "attend_packed_ref", "query_rows"]

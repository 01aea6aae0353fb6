"""Classification heads of many profiles, with different numbers of labels, as one grouped operation."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Impl, Operator, deferred
from .reference import apply_heads_ref

HEADS = Operator(
    "apply_heads",
    {Impl.REFERENCE: apply_heads_ref, Impl.TRITON: deferred(f"{__name__}.kernel", "apply_heads_triton")},
)


def apply_heads(
    pooled: Tensor, weight: Tensor, bias: Tensor, rows: Tensor, owners: Tensor, *, impl: Impl = Impl.AUTO
) -> Tensor:
    """Every sequence against the label rows of its own profile's head.

    Semantics: ``logits[j] = dot(pooled[owners[j]], weight[rows[j]]) + bias[rows[j]]``

    Args:
        pooled: ``[Q, H]``, one vector a sequence.
        weight, bias: ``[D, H]`` and ``[D]``, all resident heads' label rows.
        rows, owners: ``[J]`` int64; J = ΣC over the sequences: which label row meets which sequence.
    Returns: ``[J]`` float32.
    Raises: ValueError if the shapes do not fit.
    """
    return HEADS(pooled.device.type, impl)(pooled, weight, bias, rows, owners)  # type: ignore[no-any-return]


__all__ = ["HEADS", "apply_heads", "apply_heads_ref"]

"""The mean of each sequence's rows."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Impl, Operator, deferred
from .reference import mean_rows_ref

POOL = Operator(
    "mean_rows",
    {Impl.REFERENCE: mean_rows_ref, Impl.TRITON: deferred(f"{__name__}.kernel", "mean_rows_triton")},
)


def mean_rows(hidden: Tensor, starts: Tensor, ends: Tensor, *, impl: Impl = Impl.AUTO) -> Tensor:
    """Average the rows of each sequence.

    Semantics: ``out[q] = sum(hidden[t] for t in range(starts[q], ends[q])) / (ends[q] - starts[q])``

    Rows are added up in float32, one by one in their order: the bits are the same in any company. A sequence without
    rows gives zeros.

    Args:
        hidden: ``[T, H]``, floating point.
        starts, ends: ``[Q]`` int64, first row of each sequence and the row behind its last, 0 ≤ start ≤ end ≤ T.
    Returns: ``[Q, H]`` float32.
    Raises: ValueError if shapes or dtypes do not fit.
    """
    return POOL(hidden.device.type, impl)(hidden, starts, ends)  # type: ignore[no-any-return]


__all__ = ["POOL", "mean_rows", "mean_rows_ref"]

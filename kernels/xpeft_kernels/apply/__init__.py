"""Every token through the adapter of its own profile, as one grouped operation."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import Impl, Operator, deferred
from ..form import AdapterForm
from ..tiles import PlacedTiles, Tiles
from .launch import FEW_TOKENS, piece_rows
from .norm import Norm
from .reference import apply_adapters_even, apply_adapters_ref

APPLY = Operator(
    "apply_adapters",
    {Impl.REFERENCE: apply_adapters_ref, Impl.TRITON: deferred(f"{__name__}.kernel", "apply_adapters_triton")},
)


def apply_adapters(
    hidden: Tensor,
    slots: Tensor,
    tiles: Tiles | PlacedTiles,
    form: AdapterForm,
    *,
    residual: Tensor | None = None,
    norm: Norm | None = None,
    impl: Impl = Impl.AUTO,
) -> Tensor:
    """The adapter of each token's profile, with what follows it in the block.

    Semantics, for every token t whose run lies in slot s (A, B, c, d, w, v: the parts of ``slots[s]``)::

        z      = LN_R(hidden[t] @ A + c) * w + v            # without LN_R: hidden[t] @ A + c
        out[t] = hidden[t] + act(z) @ B + d                 # + residual[t], then norm(·), where they are given

    Args:
        hidden: ``[T, H]``, output of a block's feed-forward before its residual add.
        slots: ``[S, D]`` rows of ``form`` (``form.slot_row`` wide), one block's.
        tiles: runs of tokens that cover all T rows; for the kernel also pieces that are on the device already, cut for
            `piece_rows`. Rows that none of those covers are not written.
        residual: ``[T, H]`` added after the adapter.
        norm: the block's LayerNorm of a post-LN model.
    Returns: ``[T, H]``, dtype of ``hidden``; products accumulate in float32.
    Raises: ValueError if the shapes do not fit, or the reference gets pieces that are placed already.
    X-PEFT (arXiv 2401.16137), equation 1.
    """
    return APPLY(hidden.device.type, impl)(hidden, slots, tiles, form, residual=residual, norm=norm)  # type: ignore[no-any-return]


__all__ = ["APPLY", "FEW_TOKENS", "Norm", "apply_adapters", "apply_adapters_even", "apply_adapters_ref", "piece_rows"]

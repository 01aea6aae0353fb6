"""What apply_adapters refuses, whichever implementation runs."""

from __future__ import annotations

from torch import Tensor

from ..form import AdapterForm
from ..tiles import PlacedTiles, Tiles


def check_apply(
    hidden: Tensor, slots: Tensor, tiles: Tiles | PlacedTiles, form: AdapterForm, *, residual: Tensor | None
) -> None:
    """Raises: ValueError with the shapes that do not fit."""
    if hidden.shape != (tiles.tokens, form.hidden):
        raise ValueError(f"hidden is {tuple(hidden.shape)}, tiles and form say {(tiles.tokens, form.hidden)}")
    _check_rest(hidden, slots, form, residual)


def check_even(hidden: Tensor, slots: Tensor, form: AdapterForm, *, residual: Tensor | None) -> None:
    """Raises: ValueError with the shapes that do not fit."""
    tokens, width = hidden.shape
    if width != form.hidden or not tokens or tokens % slots.shape[0]:
        raise ValueError(f"hidden is {(tokens, width)}, it must be as many tokens for each of {slots.shape[0]} slots")
    _check_rest(hidden, slots, form, residual)


def _check_rest(hidden: Tensor, slots: Tensor, form: AdapterForm, residual: Tensor | None) -> None:
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual is {tuple(residual.shape)}, hidden {tuple(hidden.shape)}")
    if slots.shape[1] != form.slot_row:
        raise ValueError(f"slot rows have {slots.shape[1]} elements, the form needs {form.slot_row}")

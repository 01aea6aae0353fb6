"""Slots: device rows with the materialised adapters and heads of resident profiles."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_kernels import (
    PROFILE_TILES,
    AdapterForm,
    Impl,
    Norm,
    PlacedTiles,
    Tiles,
    aggregate_adapters,
    apply_adapters,
    piece_rows,
)
from xpeft_profiles import BankGeometry, Profile

from .banks.bank import Bank
from .banks.errors import BankInvalid
from .device_memory import room_for
from .lanes import Mark, lanes_of
from .recorded import recorded
from .slot_readers import SlotReaders


class SlotFill(NamedTuple):
    """A profile to materialise. ``head_rows`` ``[C]`` are the label rows for its own head, empty without one."""

    slot: int
    profile: Profile
    head_rows: NDArray[np.int64]


class Filled(NamedTuple):
    """When a fill began and ended."""

    began: Mark
    ended: Mark


def adapter_form(bank: Bank) -> AdapterForm:
    return AdapterForm(
        hidden=bank.hidden,
        width=bank.width,
        activation=bank.activation,
        layer_norm=bank.layer_norm,
        down_bias=bank.down_bias is not None,
        up_bias=bank.up_bias is not None,
    )


def check_width(bank: Bank, *, device: torch.device, dtype: torch.dtype) -> None:
    """Raises: BankInvalid if its adapters are wider than the device's kernel takes; a CPU takes any."""
    if device.type != "cuda":
        return
    try:
        piece_rows(1, adapter_form(bank), dtype.itemsize)
    except ValueError as error:
        raise BankInvalid(f"{error} (--device cpu takes any)") from None


def bank_rows(bank: Bank, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[L, N, D]`` of `AdapterForm`: the bank as the operators read it."""
    parts = [bank.down.flatten(2), bank.down_bias, bank.up.flatten(2), bank.up_bias]
    form = adapter_form(bank)
    rows = torch.empty(bank.blocks, bank.adapters, form.bank_row, device=device, dtype=dtype)
    start = 0
    for part in parts:
        if part is not None:
            rows[..., start : start + part.shape[-1]] = part
            start += part.shape[-1]
    return rows


class SlotBuffers:
    """Preallocated for S slots and ``head_rows`` label rows; the bank's shared heads follow.

    Args:
        bank: ``[L, N, D]`` rows of the form, as `bank_rows`; dtype of the model, float32 on CPU.
        adapters: ``[L, S + 1, D']`` rows of the form, dtype of the model; the last is all zeros, an adapter that
            changes nothing, for rows of the bare PLM in a batch with others.
        head_weight, head_bias: ``[rows, H]`` and ``[rows]`` float32; the last row is all zeros, and no profile's.
    Raises: ModelUnusable if the device has no memory for the bank, or for so many slots.
    """

    def __init__(self, bank: Bank, *, slots: int, head_rows: int, device: torch.device, dtype: torch.dtype) -> None:
        self.form = adapter_form(bank)
        self.lanes = lanes_of(device)
        self.own_head_rows = head_rows
        self._readers = SlotReaders()
        # On CPU the bank is float32, because rows are added up in float32.
        kept = torch.float32 if device.type == "cpu" else dtype
        bank_bytes = bank.blocks * bank.adapters * self.form.bank_row * kept.itemsize
        with room_for(f"bank: {bank.adapters} adapters for each block take {bank_bytes} bytes", device):
            self.bank = bank_rows(bank, device=device, dtype=kept)
        shared = {name: head.weight.shape[0] for name, head in bank.heads.items()}
        total = head_rows + sum(shared.values()) + 1
        slot_bytes = bank.blocks * self.form.slot_row * dtype.itemsize
        with room_for(f"slots: {slots} of {slot_bytes} bytes", device):
            # Not zeroed: on CPU a slot takes memory when it is first filled, and is not read before.
            self.adapters = torch.empty(bank.blocks, slots + 1, self.form.slot_row, device=device, dtype=dtype)
            self.head_weight = torch.empty(total, bank.hidden, device=device)
            self.head_bias = torch.empty(total, device=device)
        self.adapters[:, slots].zero_()
        self.head_weight[-1:].zero_()
        self.head_bias[-1:].zero_()
        self.shared_head_rows: dict[str, NDArray[np.int64]] = {}
        start = head_rows
        for name, count in shared.items():
            rows = np.arange(start, start + count)
            self.shared_head_rows[name] = rows
            self.head_weight[start : start + count] = bank.heads[name].weight
            self.head_bias[start : start + count] = bank.heads[name].bias
            start += count

    @property
    def slots(self) -> int:
        """S."""
        return self.adapters.shape[1] - 1

    @property
    def bare_slot(self) -> int:
        """The slot of the bare PLM, whose adapter changes nothing."""
        return self.slots

    @property
    def spare_head_row(self) -> int:
        """The label row that is no profile's."""
        return self.head_bias.numel() - 1

    def warm_up(self, geometry: BankGeometry) -> None:
        """Launch what `fill` may launch, into the slot and the label row that are no profile's; then zero the slot.

        Args: geometry: of the bank.
        """
        # Kernels that are compiled at first use depend on the number of profiles.
        counts = PROFILE_TILES if self.lanes.asynchronous else (1,)
        for profile, count in product(_stand_ins(geometry), counts):
            self._write([SlotFill(self.bare_slot, profile, np.array([self.spare_head_row]))] * count)
        self.adapters[:, self.bare_slot].zero_()

    def fill(self, fills: Sequence[SlotFill], *, overlap: bool = False) -> Filled:
        """Materialise profiles into their slots, before whatever is launched next.

        Args:
            overlap: wait only for launches that read these slots, which must all be known by `note_readers`; others
                go on meanwhile.
        """
        with self.lanes.filling(after=self._readers_of(fills) if overlap else None):
            began = self.lanes.mark()
            self._write(fills)
            return Filled(began, self.lanes.mark())

    def note_readers(self, slots: NDArray[np.int64], head_rows: NDArray[np.int64], until: Mark) -> None:
        """The latest launch reads these until then."""
        if self.lanes.asynchronous:
            self._readers.add(slots, head_rows, until)

    def _readers_of(self, fills: Sequence[SlotFill]) -> list[Mark]:
        slots = np.array([fill.slot for fill in fills])
        last = self._readers.last_of(slots, np.concatenate([fill.head_rows for fill in fills]))
        return [] if last is None else [last]

    def _write(self, fills: Sequence[SlotFill]) -> None:
        """For each block one product for all hard profiles, and one for all soft ones."""
        for hard in (True, False):
            some = [fill for fill in fills if fill.profile.hard is hard]
            if some:
                self._aggregate(some, hard)
        if self.form.layer_norm and fills:
            self._write_affine(fills)
        for fill in fills:
            if fill.profile.head_weight is not None and fill.profile.head_bias is not None:
                rows = self._device(fill.head_rows)
                self.head_weight[rows] = self._device(fill.profile.head_weight).float()
                self.head_bias[rows] = self._device(fill.profile.head_bias).float()

    def _aggregate(self, fills: Sequence[SlotFill], hard: bool) -> None:
        masks = np.stack([np.stack([fill.profile.mask_a, fill.profile.mask_b]) for fill in fills])
        if hard:
            masks = np.packbits(masks, axis=-1, bitorder="little")
        ids = self._device(np.array([fill.slot for fill in fills]))
        aggregate_adapters(self.bank, self._device(masks), self.adapters, ids, split=self.form.split)

    def _write_affine(self, fills: Sequence[SlotFill]) -> None:
        """LN_R's weight and bias of each profile, identity where it brings none."""
        width = self.form.width
        affine = np.empty((self.adapters.shape[0], len(fills), 2 * width), np.float32)
        for place, fill in enumerate(fills):
            weight, bias = fill.profile.ln_weight, fill.profile.ln_bias
            affine[:, place, :width] = 1.0 if weight is None else weight
            affine[:, place, width:] = 0.0 if bias is None else bias
        ids = self._device(np.array([fill.slot for fill in fills]))
        values = self._device(affine).to(self.adapters.dtype)
        self.adapters[:, :, self.form.bank_row :].index_copy_(1, ids, values)

    def _device(self, values: NDArray[np.generic]) -> Tensor:
        return self.lanes.upload(values)


def _stand_ins(geometry: BankGeometry) -> list[Profile]:
    """A hard and a soft profile that select the bank's first adapter, each with a head of zeros."""
    first = np.broadcast_to(np.arange(geometry.adapters) == 0, (geometry.blocks, geometry.adapters))
    head = np.zeros((1, geometry.hidden), np.float16)
    return [
        Profile(bank=geometry.fingerprint, mask_a=mask, mask_b=mask, head_weight=head, labels=("none",))
        for mask in (first, first.astype(np.float16))
    ]


class SlotAdapters:
    """Slots as the `Adapters` of one batch's forward."""

    def __init__(self, rows: Tensor, tiles: Tiles | PlacedTiles, form: AdapterForm, *, impl: Impl = Impl.AUTO) -> None:
        self._rows = rows
        self._tiles = tiles
        self._form = form
        self._impl = impl

    def __call__(self, block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
        rows = self._rows[block]
        with recorded("adapters"):
            return apply_adapters(hidden, rows, self._tiles, self._form, residual=residual, norm=norm, impl=self._impl)

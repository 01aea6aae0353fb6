"""The three operators alone, on the slots, tiles and heads of a real batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from xpeft_kernels import Norm, Tiles, aggregate_adapters, apply_adapters, apply_heads
from xpeft_server.model.batches.packing import packed_order
from xpeft_server.model.tokens.tokenizing import TokenizedText

from ..random_profiles import CLASSES
from .resident import ResidentProfiles

FILLS = (1, 8, 32)


class OperatorCall(NamedTuple):
    """``run`` is one call, finished when it returns."""

    meaning: str
    run: Callable[[], object]


def operator_calls(
    resident: ResidentProfiles, texts: list[TokenizedText], owners: list[int]
) -> Mapping[str, OperatorCall]:
    """Variant → call. The batch is ``texts`` with the profiles ``owners``."""
    return {
        **_aggregate_calls(resident, max(owners) + 1),
        **_apply_call(resident, texts, owners),
        **_heads_call(resident, owners),
    }


def _aggregate_calls(resident: ResidentProfiles, profiles: int) -> dict[str, OperatorCall]:
    classifier = resident.classifier
    bank, buffers, device = classifier.geometry, classifier.buffers, classifier.plm.device
    shape = (bank.blocks, bank.adapters, buffers.form.bank_row)
    rows = torch.randn(shape, device=device, dtype=buffers.bank.dtype)
    slots = torch.empty_like(buffers.adapters)

    def call(count: int) -> OperatorCall:
        chosen = np.arange(bank.adapters) < max(1, bank.adapters // 2)
        masks = np.random.default_rng(0).permuted(np.tile(chosen, (count, 2, bank.blocks, 1)), axis=-1)
        packed = torch.from_numpy(np.packbits(masks, axis=-1, bitorder="little")).to(device)
        ids = torch.arange(count, device=device)

        def run() -> None:
            aggregate_adapters(rows, packed, slots, ids, split=buffers.form.split)

        return OperatorCall(f"materialise {count} profiles in all {bank.blocks} blocks", _whole(run, device))

    return {f"aggregate_adapters P={count}": call(count) for count in FILLS if count <= profiles}


def _apply_call(resident: ResidentProfiles, texts: list[TokenizedText], owners: list[int]) -> dict[str, OperatorCall]:
    classifier = resident.classifier
    buffers, plm = classifier.buffers, classifier.plm
    order = packed_order(owners, [len(text) for text in texts])
    tiles = Tiles.of([owners[i] for i in order], [len(texts[i]) for i in order], plm.device)
    width = classifier.geometry.hidden
    hidden, residual = (torch.randn(tiles.tokens, width, device=plm.device, dtype=plm.dtype) for _ in range(2))
    norm = Norm(hidden.new_ones(width), hidden.new_zeros(width), 1e-12) if plm.family.post_norm else None

    def run() -> Tensor:
        return apply_adapters(
            hidden, buffers.adapters[0], tiles, buffers.form, residual=None if norm is None else residual, norm=norm
        )

    ends = ", residual add and LayerNorm included" if norm else ""
    meaning = f"one block's adapters on {tiles.tokens} tokens of {len(set(owners))} profiles{ends}"
    return {"apply_adapters one block": OperatorCall(meaning, _whole(run, plm.device))}


def _heads_call(resident: ResidentProfiles, owners: list[int]) -> dict[str, OperatorCall]:
    classifier = resident.classifier
    buffers, device = classifier.buffers, classifier.plm.device
    pooled = torch.randn(len(owners), classifier.geometry.hidden, device=device)
    rows = torch.tensor([owner * CLASSES + c for owner in owners for c in range(CLASSES)], device=device)
    sequences = torch.arange(len(owners), device=device).repeat_interleave(CLASSES)

    def run() -> Tensor:
        return apply_heads(pooled, buffers.head_weight, buffers.head_bias, rows, sequences)

    meaning = f"the heads of {len(owners)} texts with {CLASSES} labels each"
    return {"apply_heads": OperatorCall(meaning, _whole(run, device))}


def _whole(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """A call of ``run`` up to its end on the device."""

    @torch.inference_mode()
    def call() -> object:
        result = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return call

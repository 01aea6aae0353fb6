"""What a profile over a bank takes, where it is served and where it is kept. In bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xpeft_server.model.banks.bank import Bank

_GIB: Final = 1 << 30
_ITEM: Final = {"float32": 4, "bfloat16": 2}


def bank_sizes(bank: Bank) -> dict[str, dict[str, int]]:
    """A profile's slot by the number format of the model, and the parts of its record: both masks, LN_R's affine."""
    from xpeft_server.model.slots import adapter_form

    row = adapter_form(bank).slot_row
    return {
        "slot_bytes": {dtype: bank.blocks * row * size for dtype, size in _ITEM.items()},
        "record_bytes": {
            "hard_masks": 2 * bank.blocks * ((bank.adapters + 7) // 8),
            "soft_masks": 2 * bank.blocks * bank.adapters * 2,
            "layer_norm": 2 * bank.blocks * bank.width * 2 if bank.layer_norm else 0,
        },
    }


def size_facts(bank: Bank) -> dict[str, str]:
    """Rows of a table."""
    sizes = bank_sizes(bank)
    slots, record = sizes["slot_bytes"], sizes["record_bytes"]
    return {
        "a profile's masks": f"{record['hard_masks']:,} bytes hard, {record['soft_masks']:,} soft",
        "its LayerNorm affine": f"{record['layer_norm']:,} bytes",
        "its slot": ", ".join(f"{size:,} bytes in {dtype}" for dtype, size in slots.items()),
        "slots in 1 GiB": ", ".join(f"{_GIB // size:,} in {dtype}" for dtype, size in slots.items()),
    }

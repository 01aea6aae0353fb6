"""What is in a bank, for people and for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xpeft_server.model.banks.bank import Bank


def bank_record(bank: Bank) -> dict[str, object]:
    """Everything about a bank but its values, under the names that the file has for it."""
    return {
        "fingerprint": bank.fingerprint,
        "plm": bank.plm,
        "blocks": bank.blocks,
        "adapters": bank.adapters,
        "hidden": bank.hidden,
        "width": bank.width,
        "dtype": str(bank.dtype).removeprefix("torch."),
        "bytes": bank.nbytes,
        "activation": bank.activation,
        "layer_norm": bank.layer_norm,
        "pooling": None if bank.pooling_by_default else bank.pooling,
        "biases": bank.down_bias is not None or bank.up_bias is not None,
        "heads": {name: list(head.labels) for name, head in bank.heads.items()},
        "provenance": bank.provenance,
    }


def bank_facts(bank: Bank) -> dict[str, str]:
    """Rows of a table."""
    heads = (f"{name} ({', '.join(head.labels)})" for name, head in bank.heads.items())
    return {
        "fingerprint": bank.fingerprint,
        "model": bank.plm,
        "blocks (L)": str(bank.blocks),
        "adapters (N)": str(bank.adapters),
        "hidden (H)": str(bank.hidden),
        "width (R)": str(bank.width),
        "dtype": str(bank.dtype).removeprefix("torch."),
        "bytes": f"{bank.nbytes:,}",
        "biases": ", ".join(name for name in ("down_bias", "up_bias") if name in bank.tensors()) or "none",
        "activation": bank.activation,
        "layer norm": "yes" if bank.layer_norm else "no",
        "pooling": "the model's default" if bank.pooling_by_default else bank.pooling,
        "shared heads": ", ".join(heads) or "none",
        "provenance": bank.provenance or "not told",
    }

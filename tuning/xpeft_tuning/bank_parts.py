"""The bank as tuning multiplies masks with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.slots import adapter_form, bank_rows


class BankParts(NamedTuple):
    """The two parts of `AdapterForm`'s rows, ``[L, N, split]`` and ``[L, N, D - split]`` float32.

    Args:
        down: what mask a chooses from: down-projections, and their biases where the bank has them.
        up: what mask b chooses from.
    """

    down: Tensor
    up: Tensor

    @classmethod
    def of(cls, bank: Bank, device: torch.device) -> BankParts:
        rows = bank_rows(bank, device=device, dtype=torch.float32)
        split = adapter_form(bank).split
        return cls(rows[..., :split].contiguous(), rows[..., split:].contiguous())

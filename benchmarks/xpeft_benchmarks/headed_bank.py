"""A bank with a head that all profiles share, so that a profile is its masks and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from xpeft_profiles import BankGeometry
from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.file import write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import load_plm

HEAD: Final = "topics"
_CLASSES: Final = 4


def write_headed_bank(plm: str, bank: str, path: Path, *, seed: int) -> BankGeometry:
    """The bank as it is, with one more head, as a file. Raises: ModelError, BankError."""
    opened = open_bank(bank, load_plm(plm, device=torch.device("cpu"), dtype=torch.float32).facts)
    headed = with_head(opened, seed=seed)
    write_bank_file(headed, path)
    return headed.geometry


def with_head(bank: Bank, *, seed: int) -> Bank:
    """The bank with one more head, `HEAD`."""
    weight = 0.05 * torch.randn(_CLASSES, bank.hidden, generator=torch.Generator().manual_seed(seed))
    head = SharedHead(weight, torch.zeros(_CLASSES), tuple(f"topic-{number}" for number in range(_CLASSES)))
    return replace(bank, heads={**bank.heads, HEAD: head})

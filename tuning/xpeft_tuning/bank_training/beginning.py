"""Where a bank's training begins: at another bank's adapters."""

from __future__ import annotations

import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.plm import Plm

from .settings import BankTrainingSettings


def check_beginning(start: Bank, plm: Plm, settings: BankTrainingSettings, labels: tuple[str, ...]) -> None:
    """Raises: BankInvalid, naming what of the bank differs from what shall be trained."""
    if start.plm != plm.facts.fingerprint:
        raise BankInvalid(f"the bank to start from is of the language model {start.plm}, not {plm.facts.fingerprint}")
    pairs = (
        ("width", start.width, settings.width),
        ("activation", start.activation, settings.activation),
        ("layer_norm", start.layer_norm, settings.layer_norm),
        ("biases", start.down_bias is not None, settings.biases),
        ("biases", start.up_bias is not None, settings.biases),
        ("pooling", start.pooling, settings.pooling or start.pooling),
    )
    for name, there, asked in pairs:
        if there != asked:
            raise BankInvalid(f"{name} is {asked}, and the bank to start from has {there}")
    if start.adapters > settings.adapters:
        raise BankInvalid(f"adapters is {settings.adapters}, and the bank to start from has {start.adapters}")
    head = start.heads.get(settings.head)
    if head is not None and head.labels != labels:
        raise BankInvalid(
            f"the head {settings.head!r} of the bank to start from has the labels {list(head.labels)}, "
            f"and the rows have {list(labels)}"
        )


def copies(rows: Tensor, bias: Tensor | None, count: int, apart: float, generator: torch.Generator) -> Tensor:
    """``[L, N₀, …]`` and ``[L, N₀, B]`` → ``[L, N, D]``: the adapters in turn, repeated until there are N.

    Args: count: N; apart: noise on repeated adapters, in standard deviations of their weights.
    """
    given = rows.shape[1]
    again = torch.arange(count) % given
    weights = rows.flatten(2).float()[:, again]
    if count > given:
        noise = torch.randn(weights.shape, generator=generator)
        weights += apart * weights.std(dim=2, keepdim=True) * noise
    return weights if bias is None else torch.cat([weights, bias.float()[:, again]], dim=2)

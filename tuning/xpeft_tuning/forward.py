"""The frozen PLM with adapters that gradients reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xpeft_kernels import AdapterForm, Impl, Norm
from xpeft_server.model.adapted import Adapters
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotAdapters

from .row_batch import RowBatch


class _WithDropout(NamedTuple):
    """Adapters after dropout of the feed-forward's output, which is what they add to as well."""

    adapters: Adapters
    dropout: float

    def __call__(self, block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
        return self.adapters(block, nn.functional.dropout(hidden, self.dropout), residual, norm)


def hidden_states(
    plm: Plm, batch: RowBatch, slots: Tensor | None, form: AdapterForm, *, dropout: float = 0.0
) -> Tensor:
    """Last hidden states ``[T, H]``; of the bare PLM without slots.

    Args:
        slots: ``[L, P', D']`` rows of the form, which the batch's slots count.
        dropout: share of the numbers that are zeroed, the others scaled by ``1 / (1 - dropout)``: of what each block
            gives its adapters, and where the PLM's own dropout stands. Drawn from torch's global generator.
    """
    if slots is None:
        return plm.forward(batch.packed)
    # Of the operator's implementations only the reference has a gradient.
    adapters = SlotAdapters(slots.to(plm.dtype), batch.tiles, form, impl=Impl.REFERENCE)
    if not dropout:
        return plm.forward(batch.packed, adapters)
    with _dropout_on(plm.model, dropout):
        return plm.forward(batch.packed, _WithDropout(adapters, dropout))


@contextmanager
def _dropout_on(model: nn.Module, dropout: float) -> Iterator[None]:
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in modules:
        module.p = dropout
        module.train(True)
    try:
        yield
    finally:
        for module in modules:
            module.train(False)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's global generators start at ``seed`` within the context, and go on as before after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

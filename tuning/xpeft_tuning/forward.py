"""The frozen PLM with adapters that gradients reach."""

from __future__ import annotations

from torch import Tensor

from xpeft_kernels import AdapterForm, Impl
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotAdapters

from .row_batch import RowBatch


def hidden_states(plm: Plm, batch: RowBatch, slots: Tensor | None, form: AdapterForm) -> Tensor:
    """Last hidden states ``[T, H]``; of the bare PLM without slots.

    Args: slots: ``[L, P', D']`` rows of the form, which the batch's slots count.
    """
    if slots is None:
        return plm.forward(batch.packed)
    # Of the operator's implementations only the reference has a gradient.
    adapters = SlotAdapters(slots.to(plm.dtype), batch.tiles, form, impl=Impl.REFERENCE)
    return plm.forward(batch.packed, adapters)

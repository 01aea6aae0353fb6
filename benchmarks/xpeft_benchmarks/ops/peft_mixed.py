"""What Hugging Face PEFT does with a batch of many adapters: padded, a LoRA adapter for each text."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xpeft_server.model.banks.bank import Pooling
from xpeft_server.model.plm import Plm
from xpeft_server.model.tokens.tokenizing import TokenizedText

from .bare import BarePadded, load_plain_model


class PeftUnavailable(Exception):
    """PEFT was asked for and is not installed."""


class PeftMixed:
    """``adapters`` LoRA adapters of one rank on query and value projections, named in each batch (``adapter_names``).

    Raises: PeftUnavailable.
    """

    def __init__(self, plm: Plm, pooling: Pooling, head: Tensor, *, adapters: int, rank: int) -> None:
        try:
            peft: Any = importlib.import_module("peft")
        except ImportError as error:
            raise PeftUnavailable(f"PEFT cannot be imported ({error}): pip install peft, or leave --peft out") from None
        config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, init_lora_weights=False)
        model = peft.get_peft_model(load_plain_model(plm), config, adapter_name="p0")
        for number in range(1, adapters):
            model.add_adapter(f"p{number}", config)
        model.requires_grad_(False).train(False).to(device=plm.device, dtype=plm.dtype)
        self._forward = BarePadded(plm, pooling, head, model=model)

    def __call__(self, texts: Sequence[TokenizedText], owners: Sequence[int]) -> NDArray[np.float32]:
        """``[Q, C]`` logits; ``owners`` are the texts' adapters."""
        return self._forward(texts, adapter_names=[f"p{owner}" for owner in owners])

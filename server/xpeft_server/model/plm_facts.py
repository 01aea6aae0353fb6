"""What a bank has to know of the language model that it is for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fingerprint import fingerprint


@dataclass(frozen=True)
class PlmFacts:
    """A language model, told by its numbers: L blocks of width H. ``fingerprint`` is :func:`plm_fingerprint`'s."""

    fingerprint: str
    model_type: str
    blocks: int
    hidden: int
    vocab_size: int
    decoder: bool


def plm_fingerprint(*, model_type: str, hidden: int, blocks: int, vocab_size: int, first_feed_forward: Tensor) -> str:
    """Tell one model from every other, cheaply: two models of one shape differ in their first feed-forward.

    Semantics: fingerprint({"blocks", "first_feed_forward": {"dtype": "BF16", "shape"}, "hidden", "model_type",
    "vocab_size"}, [bfloat16(first_feed_forward)]), see :func:`~.fingerprint.fingerprint`.

    Args:
        first_feed_forward: the weight of the first block's feed-forward output, as the model stores it; cast
            to bfloat16 so that a checkpoint in float32 and its copy in bfloat16 are one model.
    Returns: ``sha256:HEX``.
    """
    header = {
        "model_type": model_type,
        "hidden": hidden,
        "blocks": blocks,
        "vocab_size": vocab_size,
        "first_feed_forward": {"dtype": "BF16", "shape": list(first_feed_forward.shape)},
    }
    return fingerprint(header, [first_feed_forward.detach().to(torch.bfloat16)])

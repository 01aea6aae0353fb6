"""What is minimised: the loss of each row of a packed batch, and what becomes of it when it is served."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from xpeft_server.model.packing import PackedBatch
from xpeft_server.model.vocabulary_head import VocabularyHead


def label_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """``[Q]`` cross-entropy in nats of logits ``[Q, C]``, or half the squared error where targets are numbers."""
    if targets.is_floating_point():
        return (logits[:, 0] - targets).square() / 2
    return functional.cross_entropy(logits, targets, reduction="none")


def completion_losses(hidden: Tensor, batch: PackedBatch, prompts: Tensor, head: VocabularyHead) -> Tensor:
    """``[Q]`` mean cross-entropy in nats of each completion's tokens, given all that stands before them.

    Args:
        hidden: ``[T, H]``.
        prompts: ``[Q]`` int64 ≥ 1, tokens of each sequence that are given, and not learned from.
    """
    first, tokens = batch.starts + prompts - 1, batch.ends - batch.starts - prompts
    owner = torch.repeat_interleave(torch.arange(len(tokens), device=tokens.device), tokens)
    within = torch.arange(len(owner), device=tokens.device) - (tokens.cumsum(0) - tokens)[owner]
    rows = first[owner] + within
    each = functional.cross_entropy(head(hidden[rows]), batch.input_ids[0, rows + 1], reduction="none")
    return each.new_zeros(len(tokens)).index_add(0, owner, each) / tokens

"""The loss of each row of a batch: what tuning minimises, and what evaluation reports."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from xpeft_server.model.batches.packing import PackedBatch
from xpeft_server.model.vocabulary_head import VocabularyHead


def label_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """``[Q]`` cross-entropy in nats of logits ``[Q, C]``, or half the squared error where targets are numbers."""
    if targets.is_floating_point():
        return (logits[:, 0] - targets).square() / 2
    return functional.cross_entropy(logits, targets, reduction="none")


def mixed_losses(logits: Tensor, labels: Tensor, numbers: Tensor, are_numbers: Tensor) -> Tensor:
    """`label_losses` of rows of both kinds, without asking which they are.

    Args:
        logits: ``[Q, C]``.
        labels: ``[Q]`` int64, of the others 0; numbers: ``[Q]`` float32; are_numbers: ``[Q]`` bool.
    """
    return torch.where(are_numbers, label_losses(logits, numbers), label_losses(logits, labels))


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


def padded_completion_losses(
    hidden: Tensor, ids: Tensor, prompts: Tensor, live: Tensor, head: VocabularyHead, *, longest: int
) -> Tensor:
    """`completion_losses` of sequences that are all padded to S tokens; 0 where there is no completion.

    Args:
        hidden: ``[Q, S, H]``; ids: ``[Q, S]`` int64.
        prompts, live: ``[Q]`` int64, tokens that are given, and all.
        longest: tokens of a completion, at most.
    """
    places = torch.arange(longest, device=ids.device)
    rows = (prompts[:, None] - 1 + places).clamp(0, ids.shape[1] - 2)
    logits = head(hidden.gather(1, rows[..., None].expand(-1, -1, hidden.shape[2])).flatten(0, 1))
    each = functional.cross_entropy(logits, ids.gather(1, rows + 1).flatten(), reduction="none").view(rows.shape)
    tokens = live - prompts
    return (each * (places < tokens[:, None])).sum(dim=1) / tokens.clamp_min(1)

"""Logits over the bank to mask weights: a hard choice with a straight-through gradient, or a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest of each row; of equals, those that come first.

    Args: logits: ``[..., N]``, 1 ≤ k ≤ N.
    Returns: ``[..., N]`` bool, exactly k a row.
    """
    chosen = logits.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, chosen, True)


def hard_weights(logits: Tensor, k: int, *, temperature: Tensor | float = 1.0) -> Tensor:
    """A k-hot choice scaled by 1/k, with the gradient of the softmax (straight-through).

    Semantics: forward ``top_k(logits, k) / k``; backward as if it were ``softmax(logits / temperature)``.
    Source: X-PEFT (arXiv 2401.16137), section 3.2; straight-through: arXiv 1308.3432.

    Args: logits: ``[..., N]``.
    Returns: ``[..., N]``, rows sum to 1.
    """
    soft = soft_weights(logits, temperature=temperature)
    hard = top_k(logits, k).to(logits.dtype) / k
    return hard + (soft - soft.detach())


def soft_weights(logits: Tensor, *, temperature: Tensor | float = 1.0) -> Tensor:
    """``softmax(logits / temperature)`` over the bank, ``[..., N]``."""
    return (logits / temperature).softmax(dim=-1)


def gumbel_noise(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise ``-log(-log(u))``: the k largest of logits plus noise are k draws from their softmax.

    Source: Gumbel-softmax (arXiv 1611.01144), Gumbel-top-k (arXiv 1903.06059).

    Returns: float32, on the CPU, where it is drawn so that the device makes no difference.
    """
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    uniform = uniform.clamp_min(torch.finfo(torch.float64).tiny)
    return (-(-uniform.log()).log()).float()

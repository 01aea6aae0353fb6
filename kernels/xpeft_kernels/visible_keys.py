"""Attention masks that follow from the distance between a query and a key."""

from __future__ import annotations

import torch
from torch import Tensor


def visible_keys(end: int, device: torch.device, *, causal: bool, window: int | None, past: int = 0) -> Tensor:
    """Which keys each query sees.

    Semantics: out[i, j] = (not causal or j <= past + i) and (window is None or abs(past + i - j) < window)

    Args:
        end: number of keys; the queries are the last ``end - past`` of the same tokens.
        window: keys at this distance or more are not seen.
    Returns: ``[end - past, end]`` bool.
    """
    position = torch.arange(end, device=device)
    distance = position[past:, None] - position
    if window is None:
        return distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near

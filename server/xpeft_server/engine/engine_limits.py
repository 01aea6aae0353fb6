"""How much an engine takes in and keeps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Sizes are in texts, tokens, seconds, sequences and bytes; see the settings of the same names."""

    max_batch_tokens: int
    queue_limit: int
    queue_token_limit: int
    queue_seconds: float
    max_inputs: int
    max_sequences: int
    host_cache_bytes: int
    prefix_caching: bool = True

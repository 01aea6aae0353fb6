"""What a checkpoint says of generation: its end tokens are used, and it is warned of what else would change a text."""

from __future__ import annotations

import logging
import reprlib
from typing import Final

from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_NEUTRAL: Final[dict[str, object]] = {
    "repetition_penalty": 1,
    "encoder_repetition_penalty": 1,
    "guidance_scale": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "token_healing": False,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": [],
    "stop_strings": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
}
"""What changes the texts that transformers' `generate` writes greedily; with these values, as with None, none does."""


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """What the checkpoint's generation_config.json names, or its config.json: a token, or several."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    return frozenset([named] if isinstance(named, int) else named or ())


def warn_of_unapplied(source: str, model: PreTrainedModel) -> None:
    """Log the settings, in the same files, that change greedy texts and that generation here goes without."""
    told = {name: getattr(model.generation_config, name, None) for name in _NEUTRAL}
    unapplied = [
        f"{name} = {reprlib.repr(value)}"
        for name, value in told.items()
        if value is not None and value != _NEUTRAL[name]
    ]
    if unapplied:
        logger.warning(
            "plm: %r sets %s for generation, which is not applied: greedy texts differ from those of transformers' "
            "generate; a repetition_penalty can be set in each request",
            source,
            ", ".join(unapplied),
        )

"""Which PLMs are supported, and where in each the bank goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UnsupportedModel


@dataclass(frozen=True, slots=True)
class Family:
    """Paths are attribute paths, ``block`` relative to the base model, the others relative to a block.

    Args:
        blocks: the list of blocks.
        feed_forward: the module whose output is h, what the adapter reads (DESIGN equation h').
        weight: the matrix that produces h; part of the PLM's fingerprint.
        post_norm: ``feed_forward`` is ``dense``, residual add and ``LayerNorm`` in one module (BERT's Output).
        decoder: attention looks back only; the last token is what a sequence is pooled from.
        token_types: the model has segment embeddings; its tokenizer says whether they tell a pair's texts apart.
        pooler: `from_pretrained` would build a pooler that nobody uses.
    """

    blocks: str
    feed_forward: str
    weight: str
    post_norm: bool = False
    decoder: bool = False
    token_types: bool = False
    pooler: bool = False


_BERT = Family("encoder.layer", "output", "output.dense", post_norm=True, token_types=True, pooler=True)
_LLAMA = Family("layers", "mlp", "mlp.down_proj", decoder=True)

FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "electra": Family("encoder.layer", "output", "output.dense", post_norm=True, token_types=True),
    "distilbert": Family("transformer.layer", "ffn", "ffn.lin2"),
    "modernbert": Family("layers", "mlp", "mlp.Wo"),
    "gpt2": Family("h", "mlp", "mlp.c_proj", decoder=True),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mistral": _LLAMA,
    "gemma": _LLAMA,
}


def family_of(model_type: str) -> Family:
    """Raises: UnsupportedModel naming the model type and the supported ones."""
    family = FAMILIES.get(model_type)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnsupportedModel(f"plm: model type {model_type!r} is not supported (supported: {known})")
    return family


def first_position(config: PreTrainedConfig) -> int:
    """Position id of a sequence's first token: RoBERTa counts from behind its padding index."""
    return int(config.pad_token_id) + 1 if config.model_type == "roberta" else 0


def rope_settings(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """What config.json says of rotary positions: once, or for each kind of attention layer; [] without them."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else list(rope.values())


def position_limit(config: PreTrainedConfig) -> int:
    """Tokens that the model's positions can tell apart, those that are there by scaling included."""
    most = int(config.max_position_embeddings) - first_position(config)
    return min((_scaled(most, rope) for rope in rope_settings(config)), default=most)


def _scaled(most: int, rope: Mapping[str, Any]) -> int:
    """Llama 3's kind is left alone: config.json has the positions that there are behind its scaling."""
    match rope.get("rope_type"):
        case "linear":
            return int(most * rope["factor"])
        case "yarn":
            # Without a factor transformers takes it from the positions that config.json has.
            return max(most, int((rope["factor"] or 1) * (rope.get("original_max_position_embeddings") or most)))
        case _:
            return most

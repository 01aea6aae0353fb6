"""A checkpoint's configuration and weights: what they ask for is what is computed, or they are refused."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ..attention import attention_layers
from ..errors import ModelUnusable
from ..vocabulary_head import VocabularyHead
from .families import Family, rope_settings
from .generation_config import end_tokens, warn_of_unapplied

_HEAD_WEIGHT: Final = "lm_head.weight"
"""What every supported decoder calls the weight of its language-model head."""

_ACTIVATIONS: Final = ("hidden_act", "hidden_activation", "activation_function", "activation")
"""What the families call the function of their feed-forward."""

# Buffers that older checkpoints bring along, and that are computed.
_COMPUTED: Final = ("rotary_emb.inv_freq", "position_ids", "token_type_ids", "attn.bias", "attn.masked_bias")


class Weights(NamedTuple):
    """The base model; a decoder's head, and the tokens that the checkpoint says end a text."""

    model: PreTrainedModel
    vocabulary_head: VocabularyHead | None
    ends: frozenset[int]


def model_type(source: str) -> str:
    """Read before the rest, as transformers refuses families that it does not know with words of its own."""
    settings, _ = PreTrainedConfig.get_config_dict(source)
    if "model_type" not in settings:
        raise ModelUnusable(f"plm: {source!r} has no config.json that names a model_type")
    return str(settings["model_type"])


def read_config(source: str) -> PreTrainedConfig:
    """Raises: ModelUnusable for what the model would not compute, or differently beside other texts."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(source)
    positions = getattr(config, "position_embedding_type", None)
    if positions not in (None, "absolute"):
        raise ModelUnusable(f"plm: position_embedding_type is {positions!r}, only absolute positions are supported")
    for rope in rope_settings(config):
        _check_known(source, "rope_type", rope.get("rope_type", "default"), ("default", *ROPE_INIT_FUNCTIONS))
        _make_constant(rope)
    for name in _ACTIVATIONS:
        if hasattr(type(config), name):
            _check_known(source, name, getattr(config, name), ACT2FN)
    _check_window(config)
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0  # rows at once: it fails unless they divide a batch, and changes no answer
    config.return_dict = True  # false says how a model answers, not what
    return config


def read_weights(source: str, config: PreTrainedConfig, family: Family, dtype: torch.dtype) -> Weights:
    """The base model, and a decoder's head unless the checkpoint lacks it: transformers makes a random one then.

    Nor is there a head to a decoder whose tokens see those behind them, as some that were made to embed texts.

    Raises: ModelUnusable if weights are missing, or of another shape, or would not be used.
    """
    loader: Any = AutoModelForCausalLM if family.decoder else AutoModel
    options = {"add_pooling_layer": False} if family.pooler else {}
    model, report = loader.from_pretrained(
        source,
        config=config,
        dtype=dtype,
        attn_implementation="sdpa",
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # to name them: what transformers raises does not
        **options,
    )
    missing = set(report["missing_keys"])
    others = [f"{name} {list(there)}, for {list(here)}" for name, there, here in report["mismatched_keys"]]
    _refuse(source, "weights of other shapes than its config.json says:", others)
    _refuse(source, "no usable weights for", list(missing - {_HEAD_WEIGHT}))
    blocks = int(config.num_hidden_layers)
    unused = [name for name in map(str, report["unexpected_keys"]) if _belongs(name, family, blocks)]
    _refuse(source, "weights that a model of its config.json does not use:", unused)
    layers = _directed_layers(model)
    if not family.decoder:
        return Weights(model, None, frozenset())
    generates = _looks_back_only(model, layers) and _HEAD_WEIGHT not in missing
    if not generates:
        return Weights(model.base_model, None, end_tokens(model))
    warn_of_unapplied(source, model)
    return Weights(model.base_model, VocabularyHead(model.get_parameter(_HEAD_WEIGHT)), end_tokens(model))


def _check_known(source: str, name: str, value: str, known: Collection[str]) -> None:
    """What transformers raises where it looks a word up is the word alone."""
    if value not in known:
        raise ModelUnusable(f"plm: {source!r} has {name} {value!r} in its config.json, known are {', '.join(known)}")


def _make_constant(rope: dict[str, Any]) -> None:
    """Rotations that do not depend on how long the longest text of a batch is."""
    kind = rope.get("rope_type")
    if kind == "longrope":
        raise ModelUnusable("plm: rope_type is 'longrope', with which a long text would change the answers beside it")
    if kind == "dynamic":  # within the model's positions, and there are no others here, it is the default
        rope["rope_type"] = "default"
        rope.pop("factor", None)


def _check_window(config: PreTrainedConfig) -> None:
    """A window of no tokens, or none where layers need one, would be attention to everything."""
    if not hasattr(type(config), "sliding_window"):
        return
    window = config.sliding_window
    if window is None and "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelUnusable("plm: layer_types has 'sliding_attention', but there is no sliding_window that is used")
    if config.model_type == "modernbert":  # whose window is half of that, and the token itself
        if config.local_attention < 0:
            raise ModelUnusable(f"plm: local_attention is {config.local_attention}, at least 0 is needed")
    elif window is not None and window < 1:
        raise ModelUnusable(f"plm: sliding_window is {window}, at least 1 is needed: every token sees itself")


def _refuse(source: str, what: str, names: Sequence[str]) -> None:
    found = sorted(names)
    if found:
        raise ModelUnusable(f"plm: {source!r} has {what} {', '.join(found[:5])} ({len(found)} in all)")


def _belongs(name: str, family: Family, blocks: int) -> bool:
    """Whether a weight is one of the embeddings or of a block that is used."""
    if name.endswith(_COMPUTED):
        return False
    block = re.search(rf"(?:^|\.){re.escape(family.blocks)}\.(\d+)\.", name)
    return int(block[1]) < blocks if block else re.search(r"(?:^|\.)embeddings\.", name) is not None


def _directed_layers(model: PreTrainedModel) -> list[Any]:
    """Those of attention, told to look both ways where config.json says so: masks are all that transformers tells."""
    layers: list[Any] = attention_layers(model)
    if getattr(model.config, "is_causal", True) is False:
        for layer in layers:
            layer.is_causal = False
    return layers


def _looks_back_only(model: PreTrainedModel, layers: list[Any]) -> bool:
    """Whether no token of a decoder sees one behind it.

    Raises: ModelUnusable for a window that looks both ways.
    """
    if all(layer.is_causal for layer in layers):
        return True
    if getattr(model.config, "sliding_window", None):
        raise ModelUnusable("plm: is_causal is false beside a sliding_window, which is not supported")
    return False

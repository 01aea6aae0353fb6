"""Checkpoints as the libraries write them, made by hand, and what their models compute, written out."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm, prepared
from xpeft_server.model.slots import SlotAdapters, SlotBuffers, SlotFill
from xpeft_server.model.tokens.tokenizing import TextTokenizer, TokenizedText
from xpeft_tuning.bank_import.fit_texts import FitTexts

HIDDEN, INNER, VOCAB, LIMIT = 32, 48, 104, 64

_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": INNER}
_ENCODER = {**_SIZES, "vocab_size": VOCAB, "max_position_embeddings": LIMIT, "pad_token_id": 0}
_DISTILBERT = {"dim": HIDDEN, "n_layers": 3, "n_heads": 4, "hidden_dim": INNER, "vocab_size": VOCAB}
_GPT2 = {"n_embd": HIDDEN, "n_layer": 3, "n_head": 4, "n_positions": LIMIT, "n_inner": INNER, "vocab_size": VOCAB}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "head_dim": 8}
_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "distilbert": {**_DISTILBERT, "max_position_embeddings": LIMIT},
    "gpt2": {**_GPT2, "bos_token_id": 2, "eos_token_id": 3},
    "modernbert": {**_ENCODER, "global_attn_every_n_layers": 1},
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma"), _DECODER),
}
_PLACES = {
    "distilbert": ("transformer.layer", "ffn.lin2"),
    "gpt2": ("h", "mlp.c_proj"),
    "modernbert": ("layers", "mlp.Wo"),
}
_PREFIXES = {"gpt2": "transformer"}
_IDS = np.array([2, *np.random.default_rng(3).integers(4, VOCAB, 20), 3], np.int32)


class Source:
    """A small model of a family with random weights, and the same model as a PLM that a bank is for."""

    def __init__(self, family: str, tokenizer: TextTokenizer, **changes: Any) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.model: PreTrainedModel = AutoModel.from_config(
                CONFIG_MAPPING[family](**{**_CONFIGS.get(family, _ENCODER), "initializer_range": 0.1, **changes})
            ).eval()
            for name, parameter in self.model.named_parameters():
                if name.endswith(f"{_place(family)[1]}.weight") and parameter.shape[0] == parameter.shape[1]:
                    nn.init.orthogonal_(parameter)
                elif parameter.ndim == 1:
                    nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.1)
        self.family = family
        self.blocks = 3
        self.plm: Plm = prepared(family, copy.deepcopy(self.model), tokenizer)
        self.model = self.model.double()

    @property
    def prefix(self) -> str:
        """Of the base model's paths in a model with a head."""
        named = self.family in {"bert", "roberta", "electra", "distilbert"}
        return self.family if named else _PREFIXES.get(self.family, "model")

    def last_matrix(self, block: int) -> str:
        """Path of the matrix that the feed-forward ends with."""
        blocks, weight = _place(self.family)
        return f"{blocks}.{block}.{weight}"

    def hidden(self, changes: Mapping[int, Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
        """Last hidden states ``[T, H]`` in float64; a block's change adds f(x, h) to the last matrix' output h."""
        hooks = [
            self.model.get_submodule(self.last_matrix(block)).register_forward_hook(
                lambda module, arguments, out, change=change: out + change(arguments[0], out)
            )
            for block, change in changes.items()
        ]
        with torch.no_grad():
            out: Tensor = self.model(input_ids=torch.from_numpy(_IDS.astype(np.int64))[None]).last_hidden_state[0]
        for hook in hooks:
            hook.remove()
        return out

    def served(self, bank: Bank, adapter: int) -> Tensor:
        """Last hidden states ``[T, H]`` of the PLM with one adapter of the bank."""
        mask = np.zeros((bank.blocks, bank.adapters), np.bool_)
        mask[:, adapter] = True
        buffers = SlotBuffers(bank, slots=1, head_rows=0, device=self.plm.device, dtype=self.plm.dtype)
        profile = Profile(bank=bank.fingerprint, mask_a=mask, mask_b=mask)
        buffers.fill([SlotFill(0, profile, np.zeros(0, np.int64))])
        text = TokenizedText(_IDS, np.zeros_like(_IDS))
        batch = pack([text], [0], first_position=self.plm.first_position)
        assert batch.tiles is not None
        with torch.inference_mode():
            return self.plm.forward(batch, SlotAdapters(buffers.adapters, batch.tiles, buffers.form))[: len(_IDS)]


def _place(family: str) -> tuple[str, str]:
    """The list of blocks, and the feed-forward's last matrix in each."""
    if family in {"bert", "roberta", "electra"}:
        return "encoder.layer", "output.dense"
    return _PLACES.get(family, ("layers", "mlp.down_proj"))


@pytest.fixture(scope="session")
def make_source(tiny_bert: Path) -> Callable[..., Source]:
    """A model of a family, made once where its configuration is not changed."""
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(tiny_bert), LIMIT)
    made: dict[str, Source] = {}

    def make(family: str = "bert", **changes: Any) -> Source:
        if changes:
            return Source(family, tokenizer, **changes)
        if family not in made:
            made[family] = Source(family, tokenizer)
        return made[family]

    return make


@pytest.fixture(scope="session")
def fit_texts() -> FitTexts:
    """A thousand tokens of random words to fit by, and some hundreds to measure."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 100, rng.integers(3, 40))) for _ in range(80)]
    return FitTexts(tuple(texts[:64]), tuple(texts[64:]))


class Saver:
    """Writes checkpoints; every value is random, with biases that matter."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._random = torch.Generator().manual_seed(5)

    def values(self, *shape: int, std: float = 0.3) -> Tensor:
        return std * torch.randn(*shape, generator=self._random)

    def bottleneck(
        self,
        name: str = "task",
        *,
        family: str = "bert",
        path: str = "bert.encoder.layer.{}.output.adapters.",
        widths: Mapping[int, int] = dict.fromkeys(range(3), 8),
        tensors: Mapping[str, Tensor | None] = {},
        top: Mapping[str, Any] = {},
        safe: bool = False,
        **config: Any,
    ) -> Path:
        """A folder of the adapters library; ``tensors`` and ``top`` replace what is written, None takes it away."""
        content: dict[str, Tensor | None] = {}
        for block, width in widths.items():
            place = f"{path.format(block)}{name}"
            content |= {
                f"{place}.adapter_down.0.weight": self.values(width, HIDDEN),
                f"{place}.adapter_down.0.bias": self.values(width),
                f"{place}.adapter_up.weight": self.values(HIDDEN, width),
                f"{place}.adapter_up.bias": self.values(HIDDEN),
            }
        written = {key: tensor for key, tensor in {**content, **tensors}.items() if tensor is not None}
        fitting = {"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "reduction_factor": 4}
        whole: dict[str, Any] = {"config": {**fitting, "original_ln_before": False, **config}}
        whole |= {"model_type": family, "hidden_size": HIDDEN, "name": name, "version": "adapters.1.3.0", **top}
        folder = self._into(name, {key: value for key, value in whole.items() if value is not None})
        if safe:
            save_file({key: tensor.contiguous() for key, tensor in written.items()}, folder / "adapter.safetensors")
        else:
            torch.save(written, folder / "pytorch_adapter.bin")
        return folder

    def lora(
        self,
        name: str = "lora",
        *,
        source: Source,
        blocks: tuple[int, ...] = (0, 1, 2),
        rank: int = 4,
        root: str = "base_model.model.",
        inner: int = INNER,
        hidden: int = HIDDEN,
        tensors: Mapping[str, Tensor | None] = {},
        **config: Any,
    ) -> Path:
        """A folder of PEFT; ``tensors`` replace what is written, None takes it away."""
        content: dict[str, Tensor | None] = {}
        for block in blocks:
            content[f"{root}{source.last_matrix(block)}.lora_A.weight"] = self.values(rank, inner)
            content[f"{root}{source.last_matrix(block)}.lora_B.weight"] = self.values(hidden, rank)
        written = {key: tensor for key, tensor in {**content, **tensors}.items() if tensor is not None}
        usual = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", "use_dora": False}
        folder = self._into(name, {**usual, "megatron_core": "megatron.core", "fan_in_fan_out": False, **config})
        save_file(written, folder / "adapter_model.safetensors")
        return folder

    def _into(self, name: str, config: Mapping[str, Any]) -> Path:
        folder = self._folder / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder


@pytest.fixture
def save(tmp_path: Path) -> Saver:
    return Saver(tmp_path)

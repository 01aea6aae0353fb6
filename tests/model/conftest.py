"""Small models of every family, banks and profiles over them, and what a profile's answer is when nothing is clever."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import DEFAULT_PLM, Plm, load_plm
from xpeft_server.model.slots import SlotFill
from xpeft_server.model.tokens.tokenizing import TokenizedText

VOCAB, LIMIT, HIDDEN = 200, 80, 64
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")

_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
_IDS = {"bos_token_id": 0, "cls_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
_TOKENS = {**_IDS, "vocab_size": VOCAB, "initializer_range": 0.1}
_ENCODER = {**_SIZES, **_TOKENS, "max_position_embeddings": LIMIT}
_DISTILBERT = {"dim": HIDDEN, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": LIMIT}
_DECODER = {**_ENCODER, "num_key_value_heads": 2}
_WINDOW = {**_DECODER, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "max_position_embeddings": LIMIT + 2, "type_vocab_size": 1},
    "electra": {**_ENCODER, "embedding_size": 24},
    "distilbert": {**_TOKENS, **_DISTILBERT},
    "modernbert": {**_ENCODER, "local_attention": 8, "global_attn_every_n_layers": 2},
    "gpt2": {**_TOKENS, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": LIMIT},
    "llama": _DECODER,
    "qwen2": _WINDOW,
    "qwen3": {**_WINDOW, "head_dim": 24},
    "mistral": {**_DECODER, "sliding_window": 7},
    "gemma": {**_DECODER, "num_key_value_heads": 1, "head_dim": 24},
}

ENDS_OF_FEED_FORWARD: Mapping[str, str] = {
    "bert": "encoder.layer.{}.output.dense",
    "roberta": "encoder.layer.{}.output.dense",
    "electra": "encoder.layer.{}.output.dense",
    "distilbert": "transformer.layer.{}.ffn.lin2",
    "modernbert": "layers.{}.mlp.Wo",
    "gpt2": "h.{}.mlp.c_proj",
}
"""The linear whose output the adapter reads; ``layers.{}.mlp.down_proj`` in the models that descend from Llama."""


def make_tokenizer(limit: int = LIMIT, **settings: Any) -> PreTrainedTokenizerFast:
    """A word a token: ``w0`` to ``w195``; ``<s> a </s>`` or ``<s> a </s> b </s>``, where b is marked as the second."""
    vocab = {word: index for index, word in enumerate([*SPECIALS, *(f"w{i}" for i in range(VOCAB - len(SPECIALS)))])}
    backend = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    settings = {"model_max_length": limit, "model_input_names": inputs, **special, **settings}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def save_model(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Random weights; biases and norms too, which start as zeros and ones and would hide mistakes."""
    torch.manual_seed(7)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def random_text(rng: np.random.Generator, length: int, *, types: bool = False) -> TokenizedText:
    type_ids = (np.arange(length) >= rng.integers(1, length + 1)) if types else np.zeros(length)
    return TokenizedText(rng.integers(len(SPECIALS), VOCAB, length, dtype=np.int32), type_ids.astype(np.int32))


def make_bank(
    plm: Plm, *, adapters: int = 12, width: int = 8, seed: int = 0, biases: bool = False, **kind: Any
) -> Bank:
    """A bank whose adapters move the answer, with two shared heads."""
    random = torch.Generator().manual_seed(seed)

    def values(*shape: int, std: float = 0.3) -> Tensor:
        return std * torch.randn(*shape, generator=random)

    blocks, hidden = plm.facts.blocks, plm.facts.hidden
    heads = {
        name: SharedHead(values(count, hidden, std=0.1), values(count), tuple(f"{name} {i}" for i in range(count)))
        for name, count in (("mood", 3), ("stars", 1))
    }
    return Bank(
        down=values(blocks, adapters, hidden, width),
        up=values(blocks, adapters, width, hidden),
        down_bias=values(blocks, adapters, width) if biases else None,
        up_bias=values(blocks, adapters, hidden) if biases else None,
        heads=heads,
        plm=plm.facts.fingerprint,
        **{"pooling": "last" if plm.family.decoder else "mean", **kind},
    )


def make_profile(bank: Bank, number: int, *, affine: bool | None = None) -> Profile:
    """Profile ``number`` of a mixed crowd: hard and soft, with and without LN affine, own and shared heads."""
    rng = np.random.default_rng(number)
    shape = (bank.blocks, bank.adapters)

    def mask() -> NDArray[Any]:
        scores = rng.normal(size=shape)
        if number % 2:
            weights = np.exp(scores)
            return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
        return scores.argsort(1).argsort(1) < 1 + number % 5

    def halves(*size: int, mean: float = 0.0) -> NDArray[np.float16]:
        return rng.normal(mean, 0.2, size).astype(np.float16)

    rest: dict[str, Any] = {}
    if bank.layer_norm and (number % 3 > 0 if affine is None else affine):
        rest |= {
            "ln_weight": halves(bank.blocks, bank.width, mean=1.0),
            "ln_bias": halves(bank.blocks, bank.width) if number % 3 == 1 else None,
        }
    if number % 7 == 3:
        rest["shared_head"] = "mood" if number % 2 else "stars"
    else:
        count = 1 + number % 7
        rest |= {"head_weight": halves(count, bank.hidden), "labels": tuple(f"label {i}" for i in range(count))}
        rest["head_bias"] = halves(count) if number % 4 else None
    return Profile(bank=bank.fingerprint, mask_a=mask(), mask_b=mask(), **rest)


@dataclass(frozen=True)
class Crowd:
    """A classifier with resident profiles; profile ``i`` lies in ``slots[i]``."""

    classifier: Classifier
    bank: Bank
    profiles: list[Profile]
    slots: NDArray[np.int64]
    head_rows: list[NDArray[np.int64]]

    def input(self, profile: int, text: TokenizedText) -> ClassifierInput:
        return ClassifierInput(text, int(self.slots[profile]), self.head_rows[profile])

    def fill(self, profile: int) -> SlotFill:
        own = self.profiles[profile].head_weight is not None
        return SlotFill(int(self.slots[profile]), self.profiles[profile], self.head_rows[profile][: None if own else 0])


def make_crowd(plm: Plm, bank: Bank, count: int) -> Crowd:
    """``count`` profiles in shuffled slots, filled in two calls; slots that nobody owns hold NaN."""
    profiles = [make_profile(bank, number) for number in range(count)]
    classifier = Classifier(plm, bank, slots=count + 3, head_rows=7 * count)
    classifier.buffers.adapters.fill_(torch.nan)
    slots = np.random.default_rng(1).permutation(count + 3)[:count]
    rows = [
        classifier.buffers.shared_head_rows[profile.shared_head]
        if profile.shared_head
        else np.arange(7 * number, 7 * number + len(profile.labels or ()))
        for number, profile in enumerate(profiles)
    ]
    crowd = Crowd(classifier, bank, profiles, slots, rows)
    fills = [crowd.fill(number) for number in range(count)]
    classifier.fill(fills[: count // 3])
    classifier.fill(fills[count // 3 :])
    return crowd


class OneAtATime:
    """The specification: the original model in float64, a profile's adapters added up one by one, one text a call."""

    def __init__(self, source: str, bank: Bank) -> None:
        self.model = AutoModel.from_pretrained(source, dtype=torch.float64, attn_implementation="eager").eval()
        self.bank = bank
        path = ENDS_OF_FEED_FORWARD.get(self.model.config.model_type, "layers.{}.mlp.down_proj")
        self.ends = [self.model.get_submodule(path.format(block)) for block in range(bank.blocks)]

    def hidden(self, text: TokenizedText, profile: Profile | None = None) -> Tensor:
        """``[n, H]`` last hidden states; without a profile the bare model's."""
        arguments = {"input_ids": torch.tensor(text.ids[None].astype(np.int64))}
        if getattr(self.model.config, "type_vocab_size", 0) > 1:
            arguments["token_type_ids"] = torch.tensor(text.type_ids[None].astype(np.int64))
        hooks = [] if profile is None else [self._hook(block, profile) for block in range(self.bank.blocks)]
        try:
            with torch.no_grad():
                out: Tensor = self.model(**arguments).last_hidden_state[0]
        finally:
            for hook in hooks:
                hook.remove()
        return out

    def logits(self, text: TokenizedText, profile: Profile) -> Tensor:
        hidden = self.hidden(text, profile)
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[self.bank.pooling]
        if profile.shared_head is not None:
            head = self.bank.heads[profile.shared_head]
            return head.weight.double() @ pooled + head.bias.double()
        return _double(profile.head_weight) @ pooled + _double(profile.head_bias)

    def _hook(self, block: int, profile: Profile) -> Any:
        bank = self.bank
        down = _chosen(profile.mask_a[block], bank.down[block])
        up = _chosen(profile.mask_b[block], bank.up[block])
        down_bias = 0 if bank.down_bias is None else _chosen(profile.mask_a[block], bank.down_bias[block])
        up_bias = 0 if bank.up_bias is None else _chosen(profile.mask_b[block], bank.up_bias[block])

        def add_adapter(module: nn.Module, arguments: Any, out: Tensor) -> Tensor:
            z = out @ down + down_bias
            if bank.layer_norm:
                z = (z - z.mean(-1, keepdim=True)) / torch.sqrt(z.var(-1, unbiased=False, keepdim=True) + 1e-5)
                if profile.ln_weight is not None:
                    z = z * _double(profile.ln_weight[block]) + _double(profile.ln_bias[block])
            z = z.clamp(min=0) if bank.activation == "relu" else z * 0.5 * (1 + torch.erf(z / 2**0.5))
            return out + z @ up + up_bias

        return self.ends[block].register_forward_hook(add_adapter)


def _double(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values, np.float64))


def _chosen(mask: NDArray[Any], adapters: Tensor) -> Tensor:
    """``[N]`` mask row and ``[N, …]`` adapters → their weighted sum."""
    weights = mask / mask.sum() if mask.dtype == np.bool_ else mask
    total = torch.zeros_like(adapters[0], dtype=torch.float64)
    for weight, adapter in zip(weights.astype(np.float64), adapters.double(), strict=True):
        total += float(weight) * adapter
    return total


class Lab:
    """What the tests of a folder share, for files that cannot import one another."""

    limit = LIMIT
    one_at_a_time = OneAtATime
    bank = staticmethod(make_bank)
    profile = staticmethod(make_profile)
    crowd = staticmethod(make_crowd)
    text = staticmethod(random_text)
    tokenizer = staticmethod(make_tokenizer)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plms: dict[tuple[str, torch.dtype], Plm] = {}

    def saved(
        self, family: str, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any
    ) -> Path:
        """A small model of a family in a folder, its configuration changed where asked."""
        return save_model(folder, CONFIG_MAPPING[family](**{**CONFIGS[family], **changes}), tokenizer)

    def plm(self, family: str, dtype: torch.dtype = torch.float32) -> Plm:
        """The small model of a family (or ``minilm``, the real one), loaded once."""
        key = family, dtype
        if key not in self._plms:
            path = self._folder / family
            if family != DEFAULT_PLM and not path.exists():
                self.saved(family, path)
            self._plms[key] = load_plm(family if family == DEFAULT_PLM else str(path), dtype=dtype)
        return self._plms[key]


@pytest.fixture(autouse=True)
def one_thread(one_thread: None) -> None:
    """In every test."""


@pytest.fixture(scope="session")
def exact() -> Callable[..., Tensor]:
    """Attention ``(query, key, value, scale, window)`` of one sequence's tokens ``[heads, n, d]`` in float64.

    Every token sees itself and what is before it.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        groups = query.shape[0] // key.shape[0]
        q, k, v = query.double(), key.double().repeat_interleave(groups, 0), value.double().repeat_interleave(groups, 0)
        distance = torch.arange(k.shape[1])[:, None] - torch.arange(k.shape[1])
        seen = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        return (q @ k.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ v

    return attend


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("models"))

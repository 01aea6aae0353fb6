"""Small decoders of every family that write text, and what each writes for a profile when nothing is clever."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from xpeft_profiles import MemoryStore, Profile, ProfileKey
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.engine_limits import EngineLimits
from xpeft_server.engine.generation.advance import Advance
from xpeft_server.engine.generation.generator import Generator
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import Echo, Finished, GenerateRequest, News, Piece, Started
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.kv.cache import KvCache
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.tenant_limits import ONE_TENANT, LimitsOfTenants

VOCAB, CONTEXT, HIDDEN = 160, 192, 48
_TOKENS = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.3}
_LLAMA = {
    **_TOKENS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
}
_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {**_TOKENS, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, **_WINDOW},
    "qwen3": {**_LLAMA, **_WINDOW, "head_dim": 16},
    "mistral": {**_LLAMA, "sliding_window": 9},
    "gemma": {**_LLAMA, "num_key_value_heads": 1, "head_dim": 16},
}
BANK = "random:N=12,R=8,seed=1,std=0.5"


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """A word a token: ``w0`` to ``w155``; a text begins with ``<s>``."""
    words = ["<s>", "</s>", "<pad>", *(f"w{number}" for number in range(VOCAB - 4)), "<unk>"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=CONTEXT, **special)
    made.chat_template = chat_template
    return made


def save_decoder(folder: Path, family: str, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any) -> Path:
    """Random weights, wide enough apart that no two tokens are ever nearly as likely; norms and biases too."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**{**FAMILIES[family], **changes}))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def make_profile(bank: Bank, seed: int, *, labels: int = 0, k: int = 3) -> Profile:
    rng = np.random.default_rng(seed)
    masks = rng.random((2, bank.blocks, bank.adapters)).argsort(-1).argsort(-1) < k
    return Profile(
        bank=bank.fingerprint,
        mask_a=masks[0],
        mask_b=masks[1],
        ln_weight=rng.normal(1, 0.2, (bank.blocks, bank.width)).astype(np.float16),
        ln_bias=rng.normal(0, 0.2, (bank.blocks, bank.width)).astype(np.float16),
        head_weight=rng.normal(0, 1, (labels, bank.hidden)).astype(np.float16) if labels else None,
        labels=tuple(f"label{number}" for number in range(labels)) if labels else None,
    )


class Original:
    """The specification: transformers' own model and its `generate`, one prompt a call, the profile put in by hooks."""

    def __init__(self, source: str, bank: Bank) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        self.bank = bank
        gpt2 = self.model.config.model_type == "gpt2"
        path = "transformer.h.{}.mlp.c_proj" if gpt2 else "model.layers.{}.mlp.down_proj"
        self._ends = [self.model.get_submodule(path.format(block)) for block in range(bank.blocks)]

    def generate(self, prompt: Sequence[int], profile: Profile | None, new: int) -> list[int]:
        """The greedy answer's tokens, the one that ends it included."""
        ids = torch.tensor([list(prompt)])
        with self._applying(profile), torch.inference_mode():
            out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens

    def logits(self, ids: Sequence[int], profile: Profile | None) -> Tensor:
        """``[n, V]`` behind every token."""
        with self._applying(profile), torch.inference_mode():
            out: Tensor = self.model(torch.tensor([list(ids)])).logits[0]
        return out

    @contextmanager
    def _applying(self, profile: Profile | None) -> Iterator[None]:
        hooks = [] if profile is None else [self._hook(block, profile) for block in range(self.bank.blocks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, block: int, profile: Profile) -> Any:
        assert profile.ln_weight is not None
        assert profile.ln_bias is not None
        down = self.bank.down[block][torch.from_numpy(profile.mask_a[block].copy())].mean(0)
        up = self.bank.up[block][torch.from_numpy(profile.mask_b[block].copy())].mean(0)
        weight, bias = (torch.tensor(each[block]).float() for each in (profile.ln_weight, profile.ln_bias))

        def add_adapter(module: Any, arguments: Any, out: Tensor) -> Tensor:
            return out + functional.relu(functional.layer_norm(out @ down, (down.shape[1],), weight, bias)) @ up

        return self._ends[block].register_forward_hook(add_adapter)


class Told(NamedTuple):
    """All news of one answer."""

    started: Started
    echoes: list[Echo]
    pieces: list[Piece]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def ids(self) -> list[int]:
        """Of answers that tell logprobs."""
        return [token.token.id for piece in self.pieces for token in piece.tokens]


async def listen(news: AsyncIterator[News]) -> Told:
    """All of it, which has to come in its order and once."""
    async with aclosing(news) as each:  # type: ignore[type-var]
        everything = [one async for one in each]
    started, *pieces, finished = everything
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    echoes = [each for each in pieces if isinstance(each, Echo)]
    return Told(started, echoes, [each for each in pieces[len(echoes) :] if isinstance(each, Piece)], finished)


class Studio:
    """An engine that generates, with its store and the original model beside it."""

    def __init__(self, engine: Engine, store: MemoryStore, bank: Bank, plm: Plm, decoder: Decoder) -> None:
        self.engine = engine
        self.store = store
        self.bank = bank
        self.plm = plm
        self.decoder = decoder
        self.original = Original(plm.name, bank)
        self.profiles: dict[ProfileKey, Profile] = {}

    async def put(self, name: str, seed: int, *, tenant: str = "t", labels: int = 0) -> ProfileKey:
        key, profile = ProfileKey(tenant, name), make_profile(self.bank, seed, labels=labels)
        await self.store.put(key, profile)
        self.profiles[key] = profile
        return key

    def request(self, key: ProfileKey | None, prompt: Any, new: int | None = 16, **rest: Any) -> GenerateRequest:
        return GenerateRequest("t" if key is None else key.tenant, key, prompt, new, **rest)

    async def told(self, key: ProfileKey | None, prompt: Any, new: int | None = 16, **rest: Any) -> Told:
        async with asyncio.timeout(60):
            return await listen(self.engine.generate(self.request(key, prompt, new, **rest)))

    def empty(self) -> bool:
        """Whether nothing of any sequence is left but prefixes that are kept."""
        generation = self.engine._generation
        assert generation is not None
        cache, permits = self.decoder.cache, self.engine._permits
        kept = generation.generator._prefixes.tokens
        held = cache.bytes - kept * cache.shape.token_bytes if isinstance(cache, KvCache) else 0
        nothing = (cache.used - kept, held, permits.texts, permits.tokens) == (0, 0, 0, 0)
        return nothing and not generation.generator.busy and not generation._sequences

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not happened():
                await asyncio.sleep(0.001)


def keep_in_step(generator: Generator) -> None:
    """No step is begun before the event loop has told of the one before, though a busy machine holds the loop up.

    Whoever looks there at what is being written would find it over, else.
    """
    loop, step = asyncio.get_running_loop(), generator.step

    def told() -> list[Advance]:
        seen = threading.Event()
        loop.call_soon_threadsafe(seen.set)
        seen.wait(20)
        return step()

    generator.step = told  # type: ignore[method-assign]


StudioMaker = Callable[..., Awaitable[Studio]]


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("decoders")

    def saved(family: str) -> Path:
        path = folder / family
        return path if path.exists() else save_decoder(path, family)

    return saved


@pytest.fixture
def make_decoder() -> Callable[[Path, str, str], Path]:
    """Saves a model of a family whose tokenizer has this template for chats."""
    return lambda folder, family, template: save_decoder(folder, family, make_tokenizer(template))


@pytest.fixture
async def open_studio(decoders: Callable[[str], Path]) -> AsyncIterator[StudioMaker]:
    engines: list[Engine] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    async def start(
        plm: str = "llama",
        *,
        kv_tokens: int = 1 << 14,
        cache: type[KvCache | KvArena] | None = None,
        slots: int = 64,
        bank: str = BANK,
        tenants: LimitsOfTenants = ONE_TENANT,
        **limits: int,
    ) -> Studio:
        loaded = load_plm(str(decoders(plm)) if plm in FAMILIES else plm)
        opened = open_bank(bank, loaded.facts)
        classifier = Classifier(loaded, opened, slots=slots, head_rows=512)
        decoder = Decoder(loaded, classifier.buffers, kv_tokens=kv_tokens, cache=cache)
        given = {
            "max_batch_tokens": 256,
            "queue_limit": 2000,
            "queue_token_limit": 1 << 20,
            "queue_seconds": 60.0,
            "max_inputs": 64,
            "max_sequences": 64,
            "host_cache_bytes": 1 << 24,
        } | limits
        store = MemoryStore()
        bounds = EngineLimits(**given)
        engine = Engine(classifier, store, decoder=decoder, limits=bounds, metrics=Metrics(), tenants=tenants)
        engines.append(engine)
        await engine.start()
        keep_in_step(engine._generation.generator)
        return Studio(engine, store, opened, loaded, decoder)

    yield start
    for engine in engines:
        await engine.close()
    torch.set_num_threads(threads)

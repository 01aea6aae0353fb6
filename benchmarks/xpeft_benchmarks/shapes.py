"""``xpeft bench shapes``: whole forwards of known model shapes, with and without adapters, weights random.

What a kernel costs does not depend on its weights. On a GPU each variant is one CUDA graph, so that the host's speed
plays no part; on CPU, a plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from xpeft_kernels import Impl, aggregate_adapters
from xpeft_server.model.banks.random_bank import random_bank
from xpeft_server.model.banks.spec import RandomBankSpec
from xpeft_server.model.batches.packing import PackedBatch, pack
from xpeft_server.model.plm import Plm, prepared
from xpeft_server.model.prepacked import prepack
from xpeft_server.model.slots import SlotAdapters, SlotBuffers
from xpeft_server.model.tokens.tokenizing import TextTokenizer, TokenizedText

from .results import Result
from .rounds import ratio, time_interleaved

_FILL = 32
_TURN_SECONDS = 0.02
_UNKNOWN = "[UNK]"
_BERT = {"model_type": "bert", "vocab_size": 30522}


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's configuration, and how many tokens a sequence has: 1 is a step of decoding (without a KV cache)."""

    config: Mapping[str, Any]
    sequence: int
    tokens: tuple[int, ...]


SHAPES: Mapping[str, Shape] = {
    "bert-base": Shape(_BERT, 64, (128, 512, 2048, 8192, 32768)),
    "minilm": Shape(
        {**_BERT, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
        64,
        (128, 512, 2048, 8192, 32768),
    ),
    "llama-1b-decode": Shape(
        {
            "model_type": "llama",
            "vocab_size": 32000,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
        },
        1,
        (1, 8, 64, 256, 512),
    ),
}


class ShapeUnknown(ValueError):
    """No shape has that name; the message lists those that there are."""


def shape_of(name: str) -> Shape:
    """Raises: ShapeUnknown."""
    if name not in SHAPES:
        raise ShapeUnknown(f"shape {name!r} is not known (known: {', '.join(SHAPES)})")
    return SHAPES[name]


class TokensInvalid(ValueError):
    """Numbers of tokens cannot be read, or are no whole number of sequences; the message names the value."""


def parse_tokens(text: str, sequence: int) -> tuple[int, ...]:
    """Comma-separated multiples of ``sequence``; none for an empty text. Raises: TokensInvalid."""
    parts = [part.strip() for part in text.split(",")] if text else []
    for part in parts:
        if not (part.isascii() and part.isdigit() and int(part) and int(part) % sequence == 0):
            raise TokensInvalid(f"tokens {text!r}: {part!r} is not a multiple of {sequence}, a sequence's tokens")
    return tuple(map(int, parts))


@dataclass(frozen=True, slots=True)
class ShapesPlan:
    """What to measure. ``tokens`` empty: the shape's own."""

    shape: str
    adapters: int
    width: int
    tokens: tuple[int, ...]
    device: str
    dtype: str
    rounds: int
    seed: int = 0

    def settings(self) -> dict[str, object]:
        return asdict(self)


def run_shapes(plan: ShapesPlan, shape: Shape, *, on_step: Callable[[str], None]) -> list[Result]:
    """Every number of tokens in turn: bare, mixed, identical, cold, and the fill alone."""
    on_step(f"making a {plan.shape} with random weights in {plan.dtype} on {plan.device}")
    stage = Stage.of(plan, shape)
    results = []
    for tokens in plan.tokens or shape.tokens:
        on_step(f"T={tokens}")
        results += _measure(plan, stage, tokens)
    return results


@dataclass(frozen=True)
class Stage:
    """The model, its bank, masks for 32 profiles, and filled slots for a profile a sequence."""

    plm: Plm
    buffers: SlotBuffers
    masks: Tensor
    sequence: int

    @classmethod
    def of(cls, plan: ShapesPlan, shape: Shape) -> Stage:
        plm = random_plm(shape.config, device=plan.device, dtype=getattr(torch, plan.dtype))
        spec = RandomBankSpec.parse(f"random:N={plan.adapters},R={plan.width},seed={plan.seed},std=0.1")
        prepack(plm)
        bank = random_bank(spec, plm=plm.facts)
        slots = max(_FILL, max(plan.tokens or shape.tokens) // shape.sequence)
        buffers = SlotBuffers(bank, slots=slots, head_rows=1, device=plm.device, dtype=plm.dtype)
        buffers.adapters.normal_(0, 0.1, generator=torch.Generator(plm.device).manual_seed(plan.seed))
        chosen = np.random.default_rng(plan.seed).random((_FILL, 2, bank.blocks, bank.adapters)) < 0.5
        chosen[..., 0] = True
        masks = torch.from_numpy(np.packbits(chosen, axis=-1, bitorder="little")).to(plm.device)
        return cls(plm, buffers, masks, shape.sequence)

    def batch(self, tokens: int, slots: Sequence[int] | None) -> PackedBatch:
        """Sequences of equal length, each in its slot."""
        ids = np.random.default_rng(0).integers(5, self.plm.facts.vocab_size, tokens).astype(np.int32)
        texts = [TokenizedText(each, np.zeros_like(each)) for each in np.split(ids, tokens // self.sequence)]
        plm = self.plm
        return pack(texts, slots, first_position=plm.first_position, feed_forward=plm.feed_forward, device=plm.device)

    def fill(self, profiles: int) -> None:
        """The first ``profiles`` slots, from masks."""
        ids = torch.arange(profiles, device=self.plm.device)
        buffers = self.buffers
        aggregate_adapters(buffers.bank, self.masks[:profiles], buffers.adapters, ids, split=buffers.form.split)

    def forward(self, batch: PackedBatch, impl: Impl = Impl.AUTO) -> Tensor:
        """Bare without tiles."""
        if batch.tiles is None:
            return self.plm.forward(batch)
        buffers = self.buffers
        return self.plm.forward(batch, SlotAdapters(buffers.adapters, batch.tiles, buffers.form, impl=impl))


def random_plm(config: Mapping[str, Any], *, device: str, dtype: torch.dtype) -> Plm:
    """A PLM of this configuration with random weights, and a tokenizer that knows two words."""
    settings = dict(config)
    made = AutoConfig.for_model(settings.pop("model_type"), **settings)
    options = {"add_pooling_layer": False} if made.model_type == "bert" else {}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModel.from_config(made, dtype=dtype, attn_implementation="sdpa", **options)  # type: ignore[no-untyped-call]
    words = Tokenizer(models.WordLevel({_UNKNOWN: 0, "word": 1}, unk_token=_UNKNOWN))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=_UNKNOWN)  # type: ignore[no-untyped-call]
    tokenizer = TextTokenizer(fast, made.max_position_embeddings)
    return prepared("random weights", model, tokenizer, device=device, dtype=dtype)


def _measure(plan: ShapesPlan, stage: Stage, tokens: int) -> list[Result]:
    count = tokens // stage.sequence
    own = list(range(count))
    bare, mixed, one = (stage.batch(tokens, slots) for slots in (None, own, [0] * count))
    some = min(count, _FILL)

    def cold() -> None:
        stage.fill(some)
        stage.forward(mixed)

    runs: dict[str, tuple[str, Callable[[], object]]] = {
        "bare": ("the PLM without adapters", lambda: stage.forward(bare)),
        "mixed": ("every sequence another profile", lambda: stage.forward(mixed)),
        "identical": ("every sequence the same profile", lambda: stage.forward(one)),
        "cold": (f"as mixed, {some} of the profiles made from their masks first", cold),
        f"fill P={some}": (f"{some} profiles made from their masks, all blocks, no forward", lambda: stage.fill(some)),
    }
    if stage.plm.device.type == "cuda":
        runs["torch.bmm"] = ("as mixed, by the reference", lambda: stage.forward(mixed, Impl.REFERENCE))
    turns = {name: _Turn(run, stage.plm.device) for name, (_, run) in runs.items()}
    seconds = time_interleaved(turns, plan.rounds, plan.seed)
    speeds = {name: [count * turns[name].calls / each for each in times] for name, times in seconds.items()}
    return [
        Result(
            variant=f"{plan.shape} T={tokens} {name}",
            meaning=meaning,
            unit="texts",
            speeds=speeds[name],
            ratios=[ratio(f"{plan.shape} T={tokens} bare", speeds[name], speeds["bare"])]
            if name != "bare" and not name.startswith("fill")
            else [],
            details={
                "median_ms": round(1000 * count / float(np.median(speeds[name])), 4),
                "tokens": tokens,
                "sequences": count,
            },
        )
        for name, (meaning, _) in runs.items()
    ]


class _Turn:
    """So many calls that a turn is long enough for the clock; one CUDA graph each where there is a GPU."""

    def __init__(self, run: Callable[[], object], device: torch.device) -> None:
        self._device = device
        with torch.inference_mode():
            self._run = self._graph(run) if device.type == "cuda" else run
        self.calls = 1
        alone = time_interleaved({"": self}, 3, seed=0)[""]
        self.calls = max(1, round(_TURN_SECONDS / float(np.median(alone))))

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(self.calls):
            self._run()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _graph(self, run: Callable[[], object]) -> Callable[[], object]:
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

"""Launches on a GPU that is not there, by tensors that only say on which device they would be.

An operator that is given tensors of two devices, or asks for a value that only the device knows, fails.

A program of its own, as it gives PyTorch a device type for good. Prints what was launched, as JSON lines; the last
line says how a launch fails whose whole numbers were left on the host. Run: python placement.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from xpeft_benchmarks.shapes import random_plm
from xpeft_kernels import piece_rows, query_rows, sequences, tiles
from xpeft_kernels.dispatch import Operator
from xpeft_profiles import Profile
from xpeft_server.model import classifier as classifying
from xpeft_server.model import decoder as decoding
from xpeft_server.model import slots
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.random_bank import random_bank
from xpeft_server.model.banks.spec import RandomBankSpec
from xpeft_server.model.batches import packing, step_packing
from xpeft_server.model.batches.step_packing import Chunk
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.graphs.static_fields import Staged, StaticFields
from xpeft_server.model.kv import arena_step
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.lanes import HostLanes, Mark
from xpeft_server.model.packed_sequences import AttentionKernel
from xpeft_server.model.plm import Plm
from xpeft_server.model.sampling import choice as sampling
from xpeft_server.model.sampling import prompt_logprobs
from xpeft_server.model.sampling import weights as sampling_weights
from xpeft_server.model.sampling.choice import Draw, launch_choice
from xpeft_server.model.sampling.prompt_logprobs import Targets
from xpeft_server.model.sampling.rule import SamplingRule
from xpeft_server.model.slots import SlotBuffers, SlotFill
from xpeft_server.model.tokens.tokenizing import TokenizedText
from xpeft_server.model.vocabulary_head import VocabularyHead

GPU = torch.device("privateuseone", 0)
SLOTS, VOCABULARY = 4, 64
Run = Callable[[Plm, Bank, list[TokenizedText], int], dict[str, object]]
LENGTHS = (3, 11, 7, 5)
left_on_host: set[torch.dtype] = set()
"""By mistake."""

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ENCODER = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 1}
DECODER = {**ENCODER, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": {**ENCODER, "max_position_embeddings": 66},
    "electra": {**ENCODER, "embedding_size": 16},
    "distilbert": {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "modernbert": {**ENCODER, "local_attention": 8, "cls_token_id": 0, "sep_token_id": 2},
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": DECODER,
    "qwen2": DECODER,
    "qwen3": {**DECODER, "head_dim": 16},
    "mistral": {**DECODER, "sliding_window": 7},
    "gemma": {**DECODER, "head_dim": 16},
}  # fmt: skip

RULES = [
    SamplingRule(penalty, temperature, top_k, top_p, min_p, logprobs)
    for penalty, temperature, top_k, top_p, min_p, logprobs in product(
        (1.0, 1.2), (0.0, 0.8), (0, 5), (1.0, 0.9), (0.0, 0.05), (None, 3)
    )
]


def made(like: Tensor, *others: Tensor | None, shape: Sequence[int] | None = None) -> Tensor:
    """What one of our operators makes of these."""
    for each in (like, *others):
        if each is not None and each.device != GPU:
            raise AssertionError(f"a tensor of {tuple(each.shape)} {each.dtype} is on {each.device}")
    return torch.empty(like.shape if shape is None else shape, dtype=like.dtype, device=GPU)


def applied(hidden: Tensor, rows: Tensor, given: Any, form: Any, *, residual: Tensor | None, norm: Any) -> Tensor:
    return made(
        hidden, rows, given.pieces(piece_rows(given.tokens, form, hidden.itemsize)), residual, *(norm or ())[:2]
    )


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "aggregate_adapters": lambda bank, masks, rows, ids, *, split: made(bank, masks, rows, ids),
    "apply_adapters": applied,
    "apply_heads": lambda pooled, weight, bias, rows, owners: made(
        pooled, weight, bias, rows, owners, shape=rows.shape
    ),
    "attend_cache": lambda query, keys, values, steps, **_: made(query, keys, values, steps.pieces, steps.joins),
    "attend_packed": lambda query, key, value, given, **_: made(
        query, key, value, given.pieces(query_rows(query.shape[2], query.itemsize))
    ),
    "mean_rows": lambda hidden, starts, ends: made(
        hidden, starts, ends, shape=(starts.numel(), hidden.shape[1])
    ).float(),
}


def uploaded(values: NDArray[np.generic], device: torch.device) -> Tensor:
    dtype = getattr(torch, values.dtype.name)
    return torch.empty(values.shape, dtype=dtype, device="cpu" if dtype in left_on_host else device)


class GpuLanes(HostLanes):
    """Copies say where they would be; what the host lays out is real."""

    asynchronous = True

    def upload(self, values: NDArray[np.generic]) -> Tensor:
        return uploaded(values, GPU)

    def download(self, values: Tensor) -> Tensor:
        return torch.empty(made(values).shape, dtype=values.dtype)

    def staging(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def filling(self, *, after: Sequence[Mark] | None) -> AbstractContextManager[None]:
        return nullcontext()


def staged(fields: StaticFields, stage: Callable[[StaticFields], Staged] = StaticFields.stage) -> Staged:
    with unset_fake_temporarily():
        return stage(fields)


def loaded(fields: StaticFields, staged: Staged) -> None:
    if staged.memory.shape != made(fields._memory).shape:
        raise AssertionError(f"{staged.memory.numel()} bytes were staged for {fields._memory.numel()}")


def pretend() -> None:
    """Our operators and copies are those above from now on, and the device is one that PyTorch knows."""
    _setup_privateuseone_for_python_backend("gpu")
    Operator.__call__ = lambda self, device_type, impl: OPERATORS[self.name]  # type: ignore[method-assign]
    slots.lanes_of = lambda device: GpuLanes()  # type: ignore[attr-defined]
    slots.bank_rows = lambda bank, *, device, dtype: torch.empty(  # type: ignore[assignment]
        bank.blocks, bank.adapters, slots.adapter_form(bank).bank_row, device=device, dtype=dtype
    )
    classifying.choose_attention = lambda plm, lanes, tokens: AttentionKernel.OURS  # type: ignore[attr-defined]
    StaticFields.stage = staged  # type: ignore[method-assign]
    StaticFields.load = loaded  # type: ignore[method-assign]
    for module in (packing, step_packing, arena_step, decoding, sampling, sampling_weights, prompt_logprobs):
        module.on_device = uploaded  # type: ignore[attr-defined]
    for table in (tiles, sequences):
        table.placed = uploaded  # type: ignore[attr-defined]


def moved(plm: Plm) -> Plm:
    """The same modules, their weights on the GPU."""
    plm.model._apply(lambda each: torch.empty(each.shape, dtype=each.dtype, device=GPU))
    head = VocabularyHead(torch.nn.Parameter(torch.empty(VOCABULARY, plm.facts.hidden, device=GPU)))
    return replace(plm, device=GPU, feed_forward=0, vocabulary_head=head if plm.family.decoder else None)


def profile(bank: Bank, *, hard: bool, labels: tuple[str, ...] = ()) -> Profile:
    shape = (bank.blocks, bank.adapters)
    mask = np.arange(bank.adapters) < 2 if hard else np.full(bank.adapters, 1 / bank.adapters, np.float16)
    masks = np.broadcast_to(mask, shape)
    head: dict[str, Any] = {"head_weight": np.zeros((len(labels), bank.hidden), np.float16), "labels": labels}
    affine = {"ln_weight": np.ones((bank.blocks, bank.width), np.float16)} if hard else {}
    return Profile(bank=bank.fingerprint, mask_a=masks, mask_b=masks, **affine, **(head if labels else {}))


def classify(plm: Plm, bank: Bank, texts: list[TokenizedText], graph_tokens: int) -> dict[str, object]:
    classifier = Classifier(moved(plm), bank, slots=SLOTS, head_rows=8, graph_tokens=graph_tokens)
    classifier.warm_up()
    classifier.capture_bare()
    two = ("a", "b")
    profiles = [profile(bank, hard=n % 2 > 0, labels=two if n < 2 else ()) for n in range(SLOTS)]
    fills = [
        SlotFill(n, each, np.arange(2 * n, 2 * n + 2) if n < 2 else np.arange(0)) for n, each in enumerate(profiles)
    ]
    classifier.fill(fills, overlap=True)
    launched = classifier.launch([ClassifierInput(text, n, np.arange(2)) for n, text in enumerate(texts)])
    bare = classifier.bare(texts)
    shapes = [list(each._values.shape) for each in (launched, bare)]
    return {"graphs": classifier.graphs.graphs, "shapes": shapes}


def generate(plm: Plm, bank: Bank, texts: list[TokenizedText], graph_tokens: int) -> dict[str, object]:
    plm = moved(plm)
    buffers = SlotBuffers(bank, slots=SLOTS, head_rows=8, device=GPU, dtype=plm.dtype)
    decoder = Decoder(plm, buffers, kv_tokens=1024, cache=KvArena, graph_tokens=graph_tokens)
    decoder.warm_up()
    rows = [decoder.cache.claim(len(text)) for text in texts]
    steps = [
        [Chunk(text.ids, 0, rows[n], n, n != 1, targets_of(text)) for n, text in enumerate(texts)],
        [Chunk(text.ids[:1], len(text), rows[n], n, asks=True) for n, text in enumerate(texts)],
    ]
    stepped = [decoder.step(step) for step in steps]
    choose(stepped[-1].logits, RULES)
    launched = [each for output in stepped for each in output.prompt_logprobs if each is not None]
    told = [portion._logprobs for each in launched for portion in each._portions]
    made_there = [made(each) for each in (*(each.logits for each in stepped), *told)]
    return {"graphs": decoder.graphs.graphs, "shapes": [list(each.shape) for each in made_there]}


def targets_of(text: TokenizedText) -> Targets:
    return Targets(0, text.ids[1:].astype(np.int64), 2)


def choose(logits: Tensor, rules: Sequence[SamplingRule]) -> None:
    draws = [Draw(rule, 1, n, np.array([3, VOCABULARY])) for n, rule in enumerate(rules)]
    made(launch_choice(logits[:1].expand(len(draws), -1).contiguous(), draws)._ids)


def prepared(family: str, run: Run, graph_tokens: int) -> Callable[[], dict[str, object]]:
    """A launch whose weights and bank are there already, as both are made of tensors that are real."""
    plm = random_plm({"model_type": family, **CONFIGS[family]}, device="cpu", dtype=torch.bfloat16)
    bank = random_bank(RandomBankSpec.parse("random:N=4,R=8,seed=0,std=0.1"), plm=plm.facts)
    _ = bank.geometry  # which hashes them

    def launch() -> dict[str, object]:
        texts = [TokenizedText(np.arange(length, dtype=np.int32), np.zeros(length, np.int32)) for length in LENGTHS]
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            return run(plm, bank, texts, graph_tokens)

    return launch


def main() -> None:
    launches = [
        (family, run, graph_tokens, prepared(family, run, graph_tokens))
        for family, config in CONFIGS.items()
        for run in ((classify, generate) if "num_key_value_heads" in config or family == "gpt2" else (classify,))
        for graph_tokens in (0, 64)
    ]
    astray = prepared("llama", generate, 0)
    pretend()
    for family, run, graph_tokens, launch in launches:
        case = {"family": family, "launch": run.__name__, "graph_tokens": graph_tokens}
        print(json.dumps(case | launch()), flush=True)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        for rule in RULES:
            choose(torch.empty(1, VOCABULARY, device=GPU), [rule] * len(LENGTHS))
    left_on_host.add(torch.int64)
    try:
        astray()
    except RuntimeError as error:
        print(json.dumps({"astray": str(error)}), flush=True)


if __name__ == "__main__":
    main()

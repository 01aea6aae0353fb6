"""Over an arena, as on a GPU, answers are what they are over pools, token by token."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xpeft_server.engine.requests import SamplingRule
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.batches.step_packing import Chunk
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.kv.cache import KvCache
from xpeft_server.model.plm import load_plm

ANSWERS, PROFILES = 120 if os.environ.get("NIGHTLY") == "1" else 60, 8


async def answered(studio: Any, seed: int) -> list[list[int]]:
    """Tokens of answers that begin at different steps."""
    rng = np.random.default_rng(seed)
    keys = [await studio.put(f"p{number}", number) for number in range(PROFILES)]
    tasks = []
    for number in range(ANSWERS):
        prompt, new = rng.integers(3, 160, int(rng.integers(1, 100))).tolist(), int(rng.integers(1, 60))
        told = studio.told(keys[number % PROFILES], tuple(prompt), new, sampling=SamplingRule(logprobs=0))
        tasks.append(asyncio.create_task(told))
        if number % 5 == 0:
            await asyncio.sleep(0.002)
    return [told.ids for told in await asyncio.gather(*tasks)]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral"])
async def test_answers_that_are_preempted_and_prompts_that_are_read_in_pieces_are_those_of_the_pools(
    open_studio: Any, family: str
) -> None:
    roomy = await open_studio(family, cache=KvCache)
    expected = await answered(roomy, 3)
    assert roomy.engine.metrics.preemptions._value.get() == 0
    tight = await open_studio(family, cache=KvArena, kv_tokens=600, max_batch_tokens=48)
    tight.decoder.cache.states.fill_(torch.nan)
    assert await answered(tight, 3) == expected
    assert tight.engine.metrics.preemptions._value.get() > 10
    assert len({tuple(ids) for ids in expected}) > 0.9 * ANSWERS
    await tight.until(tight.empty)


async def test_answers_are_the_same_where_the_device_has_no_memory_to_move_their_keys_and_values(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await answered(await open_studio(cache=KvCache), 3)
    tight = await open_studio(cache=KvArena, kv_tokens=600, max_batch_tokens=48)
    states = tight.decoder.cache.states.untyped_storage().data_ptr()
    clone = torch.Tensor.clone

    def no_memory(tensor: torch.Tensor, **kind: Any) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() == states:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return clone(tensor, **kind)

    monkeypatch.setattr(torch.Tensor, "clone", no_memory)
    assert await answered(tight, 3) == expected
    assert "no memory to move" in caplog.text


def written(
    path: Path, cache: type[KvCache | KvArena] | None = None, *, device: str = "cpu", graph_tokens: int = 0
) -> list[list[int]]:
    """The bare model's greedy answers to prompts that are read 20 tokens a step, without an engine."""
    plm = load_plm(str(path), device=device)
    classifier = Classifier(plm, open_bank("random:N=4,R=8,seed=1,std=0.5", plm.facts), slots=2, head_rows=8)
    decoder = Decoder(plm, classifier.buffers, kv_tokens=1024, cache=cache, graph_tokens=graph_tokens)
    decoder.warm_up()
    assert isinstance(decoder.cache, KvArena) == (device == "cuda" or cache is KvArena)
    rng = np.random.default_rng(4)
    texts = [rng.integers(3, 160, length).tolist() for length in (1, 63, 40, 97, 20)]
    rows, known = [decoder.cache.claim(1) for _ in texts], [0] * len(texts)
    for _ in range(40):
        chunks = []
        for i, text in enumerate(texts):
            ids = np.array(text[known[i] : known[i] + 20], np.int32)
            rows[i] = decoder.cache.lengthen(rows[i], known[i] + ids.size)
            assert rows[i] is not None
            known[i] += ids.size
            asks = known[i] == len(text)
            chunks.append(Chunk(ids, known[i] - ids.size, rows[i], classifier.buffers.bare_slot, asks))
        asking = [text for text, chunk in zip(texts, chunks, strict=True) if chunk.asks]
        for text, token in zip(asking, decoder.step(chunks).logits.argmax(-1).tolist(), strict=True):
            text.append(token)
    return texts


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma"])
def test_a_decoder_writes_the_same_over_either(decoders: Callable[[str], Path], family: str) -> None:
    expected = written(decoders(family), KvCache)
    assert written(decoders(family), KvArena) == expected
    assert written(decoders(family)) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("graph_tokens", [0, 64])
@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma"])
def test_a_decoder_on_a_gpu_writes_what_one_on_cpu_writes(
    decoders: Callable[[str], Path], family: str, graph_tokens: int
) -> None:
    assert written(decoders(family), device="cuda", graph_tokens=graph_tokens) == written(decoders(family))


async def test_an_arena_that_the_device_has_no_memory_for_is_refused_with_its_size(
    open_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = await open_studio()
    buffers, token = studio.engine._classifier.buffers, studio.decoder.cache.shape.token_bytes

    def nothing_left(*size: Any, **kind: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", nothing_left)
    with pytest.raises(ModelUnusable, match=f"kv_tokens: 1000 tokens of keys and values take {1000 * token} bytes"):
        Decoder(studio.plm, buffers, kv_tokens=1000, cache=KvArena)

"""The process of our engine: over a store in memory, called by tasks in its own event loop."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
import uvloop

from xpeft_profiles import MemoryStore, ProfileKey
from xpeft_server.engine.device.thread import device_executor
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.engine_limits import EngineLimits
from xpeft_server.engine.errors import EngineError
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import Finished, GenerateRequest, Started
from xpeft_server.model.banks.errors import BankError
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.errors import ModelError, ModelUnusable
from xpeft_server.model.plm import load_plm
from xpeft_server.model.prepacked import prepack
from xpeft_server.settings import Settings

from ..processes.workers import answer_jobs
from ..random_profiles import CLASSES, random_profile
from ..texts import TextsInvalid
from .prompts import cut_prompts
from .timeline import AnswerWrong, Timeline

_BARE_TENANT = "bare"


class _Model(NamedTuple):
    classifier: Classifier
    decoder: Decoder


class GenerateEngineWorker:
    """Jobs: ``open`` once (model, bank, profiles, prompts), then ``run``, each request with its profile.

    Model and engine share the device thread, as in the server; the event loop runs while a job does.
    """

    def __init__(self) -> None:
        self._thread = device_executor()
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._engine: Engine | None = None
        self._keys: list[ProfileKey] = []
        self._prompts: list[tuple[int, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            self._runner.run(self._engine.close())
        self._runner.close()
        self._thread.shutdown()

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["job"] == "open":
            return self._open(job)
        return self._runner.run(self._run(job["owners"], job["new"], job["at"]))

    def _open(self, job: dict[str, Any]) -> dict[str, Any]:
        classifier, decoder = self._thread.submit(_load, job).result()
        plm = classifier.plm
        texts = [text.ids.tolist() for text in plm.tokenizer.encode_bare(job["texts"])]
        prompts = cut_prompts(texts, job["prompt_tokens"])
        self._prompts = [tuple(prompt) for prompt in prompts]
        store = MemoryStore()
        limits = _limits(job["max_batch_tokens"])
        self._engine = Engine(classifier, store, decoder=decoder, limits=limits, metrics=Metrics(), device=self._thread)
        self._runner.run(self._start(self._engine, store, profiles=job["profiles"], seed=job["seed"]))
        return {"folder": str(plm.model.name_or_path), "prompts": prompts}

    async def _start(self, engine: Engine, store: MemoryStore, *, profiles: int, seed: int) -> None:
        """Every profile belongs to another tenant."""
        self._keys = [ProfileKey(f"tenant-{index}", "bench") for index in range(profiles)]
        for index, key in enumerate(self._keys):
            await store.put(key, random_profile(engine.geometry, seed=seed, index=index))
        await engine.start()

    async def _run(self, owners: list[int | None], new: list[int], at: list[float]) -> dict[str, Any]:
        line = Timeline(at, new)
        asked = enumerate(zip(owners, new, strict=True))
        await asyncio.gather(*(self._ask(request, owner, tokens, line) for request, (owner, tokens) in asked))
        return line.measured()

    async def _ask(self, request: int, owner: int | None, tokens: int, line: Timeline) -> None:
        assert self._engine is not None
        if (seconds := line.until(request)) > 0:
            await asyncio.sleep(seconds)
        key = None if owner is None else self._keys[owner]
        tenant = _BARE_TENANT if key is None else key.tenant
        asked = GenerateRequest(tenant, key, self._prompts[request], tokens)
        async with aclosing(self._engine.generate(asked)) as news:
            async for each in news:
                if isinstance(each, Started):
                    line.started(request)
                elif isinstance(each, Finished):
                    line.ended(request, each.completion_tokens)


def _load(job: dict[str, Any]) -> _Model:
    """A model that nothing ends early, with room for all requests at once. Raises: ModelError, BankError."""
    loaded = load_plm(job["plm"], device=torch.device(job["device"]), dtype=getattr(torch, job["dtype"]))
    prepack(loaded)
    plm = replace(loaded, ends=frozenset())
    bank = open_bank(job["bank"], plm.facts)
    classifier = Classifier(plm, bank, slots=job["profiles"], head_rows=job["profiles"] * CLASSES)
    longest = job["longest"]
    # A row of the cache is up to twice as long as its sequence, and some room is kept for those that grow.
    decoder = Decoder(plm, classifier.buffers, kv_tokens=3 * longest * len(job["prompt_tokens"]))
    if decoder.limit < longest:
        raise ModelUnusable(
            f"plm: {plm.name!r} takes {decoder.limit} tokens, prompt and answer together; {longest} are needed here"
        )
    return _Model(classifier, decoder)


def _limits(max_batch_tokens: int) -> EngineLimits:
    """The server's own, where it is told nothing else; but rounds repeat their prompts, and each must compute them."""
    settings = Settings()
    return EngineLimits(
        max_batch_tokens=max_batch_tokens,
        queue_limit=settings.queue_limit,
        queue_token_limit=settings.queue_token_limit,
        queue_seconds=settings.queue_seconds,
        max_inputs=settings.max_inputs,
        max_sequences=settings.max_sequences,
        host_cache_bytes=settings.host_cache_bytes,
        prefix_caching=False,
    )


if __name__ == "__main__":
    with GenerateEngineWorker() as worker:
        answer_jobs(worker, (ModelError, BankError, EngineError, TextsInvalid, AnswerWrong))

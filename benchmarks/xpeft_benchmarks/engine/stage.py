"""What ``xpeft bench engine`` runs: a model, its bank, profiles in memory, and an engine over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, NamedTuple

import torch

from xpeft_profiles import BankGeometry, KeyedRecord, MemoryStore, ProfileKey, encode_record
from xpeft_server.engine.device.thread import device_executor
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.engine_limits import EngineLimits
from xpeft_server.engine.metrics import Metrics
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.random_bank import random_bank
from xpeft_server.model.banks.spec import RandomBankSpec
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.model.prepacked import prepack
from xpeft_server.settings import Settings

from ..headed_bank import HEAD, with_head
from ..random_profiles import CLASSES, random_profile
from ..registered import register_in
from ..shapes import random_plm, shape_of
from ..word_texts import word_tokenizer
from .plan import EnginePlan

_NOBODY_GIVES_UP: Final = 3600.0


class Model(NamedTuple):
    plm: Plm
    bank: Bank


class Stage(NamedTuple):
    """A running engine, and its classifier, which may be called directly while the engine has no requests."""

    classifier: Classifier
    engine: Engine


def load_model(plan: EnginePlan) -> Model:
    """A model of a shape takes texts of made-up words. Raises: ModelError, ShapeUnknown."""
    dtype = getattr(torch, plan.dtype)
    if plan.shape is None:
        plm = load_plm(plan.plm, device=torch.device(plan.device), dtype=dtype)
    else:
        plm = random_plm(shape_of(plan.shape).config, device=plan.device, dtype=dtype)
        plm = replace(plm, tokenizer=word_tokenizer(plm.facts.vocab_size, plm.tokenizer.limit))
    prepack(plm)
    spec = RandomBankSpec(adapters=plan.adapters, width=plan.width, seed=plan.seed)
    return Model(plm, with_head(random_bank(spec, plm=plm.facts), seed=plan.seed))


def walked_key(index: int) -> ProfileKey:
    return ProfileKey("bench-walk", f"bench-{index:08d}")


async def filled_store(
    plan: EnginePlan, geometry: BankGeometry, *, walked: int, tell: Callable[[int], None]
) -> MemoryStore:
    """Registered profiles of one tenant, masks over a shared head, and ``walked`` ones with all that one can have.

    Args:
        tell: how many of the registered ones are there.
    """
    store = MemoryStore()
    most = max(plan.profiles)
    await register_in(store, geometry, head=HEAD, profiles=most, tenants=1, seed=plan.seed, tell=tell)
    for index in range(walked):
        profile = random_profile(geometry, seed=plan.seed, index=index)
        await store.put_many([KeyedRecord(walked_key(index), profile.version, encode_record(profile))])
    return store


@asynccontextmanager
async def running_engine(
    plan: EnginePlan, model: Model, store: MemoryStore, *, tokens: int, slots: int
) -> AsyncIterator[Stage]:
    """An engine with batches of ``tokens``, as the server has it, with limits that are never reached."""
    thread = device_executor()
    classifier = await asyncio.get_running_loop().run_in_executor(
        thread,
        lambda: Classifier(model.plm, model.bank, slots=slots, head_rows=CLASSES * slots, graph_tokens=tokens),
    )
    settings = Settings()
    texts = (plan.in_flight + 1) * (plan.texts_of(tokens) + plan.inputs)
    limits = EngineLimits(
        max_batch_tokens=tokens,
        queue_limit=texts,
        queue_token_limit=texts * plan.text_tokens,
        queue_seconds=_NOBODY_GIVES_UP,
        max_inputs=plan.inputs,
        max_sequences=settings.max_sequences,
        host_cache_bytes=settings.host_cache_bytes,
    )
    engine = Engine(classifier, store, limits=limits, metrics=Metrics(), device=thread)
    await engine.start()
    try:
        yield Stage(classifier, engine)
    finally:
        await engine.close()

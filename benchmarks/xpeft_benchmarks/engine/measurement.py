"""``xpeft bench engine``: what queue, batching, slots and heads cost over the bare PLM, without HTTP."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from itertools import cycle, islice
from typing import Final

import numpy as np
import uvloop

from xpeft_kernels import AdapterForm
from xpeft_profiles import MemoryStore, ProfileKey
from xpeft_server.engine.requests import ClassifyRequest, TextInput
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import adapter_form

from ..registered import registered_key
from ..results import Result
from ..rounds import interleaved
from ..turns import Turn
from ..word_texts import word_texts
from .bare_batches import BareBatches
from .closed_loop import ClosedLoop
from .plan import EnginePlan
from .results import BARE, COLD, FEW, WARM, Variant, registered_name, results_of
from .stage import Model, Stage, filled_store, load_model, running_engine, walked_key

ChooseSlots = Callable[[AdapterForm, Plm], int]
Step = Callable[[str], None]

_BATCHES: Final = 8
"""Batches of different texts. Walks have slots for all of them, so that a GPU's cache holds none of a batch's."""

_DRAWN: Final = 1 << 20
"""Requests after which the sequence of profiles repeats."""

_WARM_UP_SECONDS: Final = 1.0


def run_engine(plan: EnginePlan, choose_slots: ChooseSlots, *, on_step: Step) -> list[Result]:
    """Every number of tokens in turn: bare and registered profiles, then walks through warm and through cold ones.

    Args:
        choose_slots: for the registered profiles, as the server does.
    Raises: ModelError, ShapeUnknown, TextsInvalid, RequestsFailed.
    """
    on_step(f"making {plan.model} in {plan.dtype} on {plan.device}")
    # In a thread that ends: torch on CPU keeps workers for every live thread that computed, and they compete.
    with ThreadPoolExecutor(1) as loader:
        model = loader.submit(load_model, plan).result()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(plan, model, choose_slots(adapter_form(model.bank), model.plm), on_step))


async def _run(plan: EnginePlan, model: Model, slots: int, on_step: Step) -> list[Result]:
    rng = np.random.default_rng(plan.seed)
    count = _BATCHES * plan.texts_of(max(plan.batch_tokens))
    texts = word_texts(model.plm.tokenizer, count, plan.text_tokens, rng)
    owners = {each: plan.popularity.draw(_DRAWN, each, rng).tolist() for each in plan.profiles}

    def tell(done: int) -> None:
        on_step(f"{done} of {max(plan.profiles)} profiles registered")

    store = await filled_store(plan, model.bank.geometry, walked=3 * count, tell=tell)
    results: list[Result] = []
    for tokens in plan.batch_tokens:
        bench = _Bench(plan, model, store, texts, tokens, on_step)
        results += await bench.registered(owners, slots)
        # The engine has reference cycles, and on a GPU the next one needs the memory of its slots.
        gc.collect()
        results += await bench.walks()
        gc.collect()
    return results


class _Bench:
    """What is measured in batches of ``tokens``."""

    def __init__(
        self, plan: EnginePlan, model: Model, store: MemoryStore, texts: Sequence[str], tokens: int, on_step: Step
    ) -> None:
        self._plan = plan
        self._model = model
        self._store = store
        self._size = plan.texts_of(tokens)
        self._texts = texts[: _BATCHES * self._size]
        self._tokens = tokens
        self._on_step = on_step
        self._in_flight = plan.in_flight * self._size
        self._prefix = f"{plan.model} T={tokens}"

    async def registered(self, owners: Mapping[int, Sequence[int]], slots: int) -> list[Result]:
        """The bare PLM, and requests for registered profiles, of which the popular ones are in slots.

        Args:
            owners: number of profiles → the profile of each request.
        """
        plan = self._plan
        async with self._running(slots) as stage:
            closed_loop = ClosedLoop(stage.engine, max(1, self._in_flight // plan.inputs))
            self._on_step(f"{self._prefix}: filling slots with what is popular")
            popular = reversed(range(min(max(plan.profiles), slots)))
            await closed_loop.ask_all(self._requests(popular, _registered_key, 1))
            with ThreadPoolExecutor(1, thread_name_prefix="bare") as thread:
                variants = {BARE: await self._bare(stage, thread)}
                for profiles in plan.profiles:
                    variants[registered_name(profiles)] = self._asked(
                        closed_loop,
                        self._requests(cycle(owners[profiles]), _registered_key, plan.inputs),
                        f"requests for {profiles} registered profiles, {plan.popularity}",
                        {"profiles": profiles, "slots": slots},
                        ramp=self._in_flight,
                        against=(BARE, registered_name(FEW)),
                    )
                return await self._measure(variants)

    async def walks(self) -> list[Result]:
        """Every text for the next profile: of as many as there are slots, and of twice as many others."""
        slots = _BATCHES * self._size
        walks = {
            WARM: (range(slots), "every text for another profile, all of them in slots"),
            COLD: (
                range(slots, 3 * slots),
                "every text for another profile, none of them in a slot, all decoded in the host's memory",
            ),
        }
        async with self._running(slots) as stage:
            closed_loop = ClosedLoop(stage.engine, self._in_flight)
            variants = {
                name: self._asked(
                    closed_loop,
                    self._requests(cycle(profiles), walked_key, 1),
                    meaning,
                    {"profiles": len(profiles), "slots": slots},
                    ramp=max(self._in_flight, 2 * slots),
                    against=(WARM,),
                )
                for name, (profiles, meaning) in walks.items()
            }
            return await self._measure(variants)

    def _running(self, slots: int) -> AbstractAsyncContextManager[Stage]:
        return running_engine(self._plan, self._model, self._store, tokens=self._tokens, slots=slots)

    async def _bare(self, stage: Stage, thread: ThreadPoolExecutor) -> Variant:
        loop = asyncio.get_running_loop()
        encoded = self._model.plm.tokenizer.encode([(text, None) for text in self._texts])
        batches = [encoded[start : start + self._size] for start in range(0, len(encoded), self._size)]
        bare = BareBatches(stage.classifier, batches)
        await loop.run_in_executor(thread, stage.classifier.capture_bare)

        async def run(seconds: float) -> Turn:
            return await loop.run_in_executor(thread, bare.turn, seconds)

        return Variant("the PLM without adapters, full batches one behind the other", run, self._facts())

    def _asked(
        self,
        closed_loop: ClosedLoop,
        requests: Iterator[ClassifyRequest],
        meaning: str,
        facts: Mapping[str, int],
        *,
        ramp: int,
        against: tuple[str, ...],
    ) -> Variant:
        async def run(seconds: float) -> Turn:
            return await closed_loop.turn(requests, seconds, ramp=ramp)

        facts = {**self._facts(), **facts, "in_flight": closed_loop.in_flight}
        return Variant(f"{meaning}; queue, tokenising and heads included", run, facts, against)

    def _facts(self) -> dict[str, int]:
        return {"tokens": self._tokens, "text_tokens": self._plan.text_tokens}

    def _requests(
        self, owners: Iterable[int], key: Callable[[int], ProfileKey], inputs: int
    ) -> Iterator[ClassifyRequest]:
        texts = cycle([TextInput(text) for text in self._texts])
        for owner in owners:
            yield ClassifyRequest(key(owner), tuple(islice(texts, inputs)))

    async def _measure(self, variants: Mapping[str, Variant]) -> list[Result]:
        plan = self._plan
        self._on_step(f"{self._prefix}: warming up {len(variants)} variants")
        for variant in variants.values():
            await variant.run(min(plan.seconds, _WARM_UP_SECONDS))
        turns: dict[str, list[Turn]] = {name: [] for name in variants}

        def tell(number: int) -> None:
            self._on_step(f"{self._prefix}: round {number} of {plan.rounds}")

        for name in interleaved(variants, plan.rounds, plan.seed, on_round=tell):
            turns[name].append(await variants[name].run(plan.seconds))
        return results_of(self._prefix, variants, turns)


def _registered_key(index: int) -> ProfileKey:
    return registered_key(index, tenants=1)

"""Requests in, answers out: every accepted request is answered exactly once, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from xpeft_profiles import BankGeometry, ProfileStore
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.tenant_limits import ONE_TENANT, LimitsOfTenants

from .classification import Classification
from .device.profiler import DeviceProfiler
from .device.slot_table import SlotTable
from .device.thread import DeviceThread, device_executor
from .device.times import DeviceTimes
from .engine_limits import EngineLimits
from .errors import DoesNotGenerate, EngineError, InternalError, Unavailable
from .fairness.backlog import Backlog
from .fairness.permits import Permits
from .fairness.queue import FairQueue
from .fairness.shares import Shares
from .generation.generation import Generation
from .info import capacity, engine_info
from .metrics import Metrics
from .profiles.cache import ProfileCache
from .profiles.freshness import Freshness
from .profiles.loader import ProfileLoader
from .profiles.store_watch import StoreWatch
from .request_checks import check_head, check_inputs, check_lengths
from .requests import ClassifyAnswer, ClassifyRequest, EngineStatus, GenerateRequest, News
from .ticket import Entry
from .tokenizer_stage import TokenizerStage, tokenizer_threads


class Engine:
    """Serves one model. Its methods are for one event loop; the device belongs to a thread of its own.

    Cached profiles are computed at once with the version at hand. Meanwhile the store is asked, once a batch, which
    versions are current; texts of a stale version are computed anew before anybody sees them.

    Args:
        tenants: the limits of each.
        decoder: over the classifier's PLM and slots; None if the model does not generate.
        device: an executor of one thread, which becomes the device thread; see `DeviceThread`.
        profiler: records what the device thread does.
        on_death: called in the event loop after the device thread has died and every request has failed.
    """

    def __init__(
        self,
        classifier: Classifier,
        store: ProfileStore,
        *,
        limits: EngineLimits,
        metrics: Metrics,
        tenants: LimitsOfTenants = ONE_TENANT,
        decoder: Decoder | None = None,
        device: ThreadPoolExecutor | None = None,
        profiler: DeviceProfiler | None = None,
        on_death: Callable[[], None] = lambda: None,
    ) -> None:
        self.metrics = metrics
        self.geometry: BankGeometry = classifier.geometry
        self._tell = partial(engine_info, classifier, decoder, limits)
        self.info = self._tell()
        self._classifier = classifier
        self._backlog = Backlog(limits.queue_seconds, least=2 * limits.max_batch_tokens, limits=tenants)
        self._permits = Permits(
            texts=limits.queue_limit,
            tokens=limits.queue_token_limit,
            backlog=self._backlog,
            limits=tenants,
        )
        threads = tokenizer_threads(classifier.asynchronous)
        self._tokenizer = TokenizerStage(classifier.plm.tokenizer, threads=threads)
        self._watch = StoreWatch(store, metrics)
        self._cache = ProfileCache(limits.host_cache_bytes, metrics)
        self._loader = ProfileLoader(
            store, geometry=self.geometry, cache=self._cache, watch=self._watch, metrics=metrics
        )
        shares, changed = Shares(tenants), threading.Condition()
        self._queue: FairQueue[Entry] = FairQueue(shares, changed=changed)
        self._classification = Classification(
            self._queue,
            loader=self._loader,
            freshness=Freshness(self._loader, self._cache),
            backlog=self._backlog,
            metrics=metrics,
            on_failure=self._device_died,
        )
        slots = SlotTable(slots=classifier.buffers.slots, head_rows=classifier.buffers.own_head_rows, metrics=metrics)
        self._generation = None
        if decoder is not None:
            self._generation = self._make_generation(decoder, slots, shares, changed, limits)
        self._device = self._make_device(slots, limits, device or device_executor(), profiler)
        self._on_death = on_death
        self._state = "starting"
        metrics.set_kernels(self.info.kernels)
        metrics.set_capacity(capacity(self.info))
        metrics.requests_running.set_function(self._count_running)
        metrics.requests_waiting.set_function(self._count_waiting)

    async def start(self) -> None:
        """Warm up and begin. The store may be down: it is asked again until it answers."""
        await self._watch.start()
        await self._device.start()
        self.info = self._tell()
        self._state = "ok"

    @property
    def device_times(self) -> DeviceTimes:
        """How device and host spent their time on batches."""
        return self._device.times

    def status(self) -> EngineStatus:
        """Ready when the engine runs and the store answers."""
        checks = {"engine": self._state, "store": self._watch.problem or "ok"}
        return EngineStatus(ready=set(checks.values()) == {"ok"}, checks=checks)

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Answer every input with one version of the profile, current when the request came or later.

        Cancelling the caller withdraws the request: what has not reached the device never will.
        Raises: EngineError.
        """
        self._check_open()
        accepted = time.monotonic()
        check_inputs(request)
        with self._permits.admitted(request.profile.tenant, len(request.inputs)) as permit:
            with request.journey.stage("tokenise", texts=len(request.inputs)):
                texts = await self._tokenizer.encode(request)
            check_lengths(request, texts, self.info.context_length)
            permit.admit_tokens(sum(map(len, texts)))
            with permit.waiting():
                profile = self._cache.get(request.profile) or await self._loader.load(request.profile, request.journey)
                if profile.labels is None:
                    # Refused without a batch, which would have checked the version: so it is checked here.
                    profile = await self._loader.current(request.profile, accepted, request.journey)
                check_head(profile)
                self._check_open()
                return await self._classification.answer(request, texts, profile, accepted)

    def check_room(self, tenant: str) -> None:
        """Raises: Overloaded if a request to classify would be refused now, whatever it asks for."""
        self._permits.check_backlog(tenant)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        """Go on with a prompt, with one version of the profile, current when the request came or later.

        Closing it withdraws the request: the sequence leaves at the next step.
        Raises: EngineError.
        """
        if self._generation is None:
            raise DoesNotGenerate(f"{self.info.plm} ({self.info.model_type}) does not generate text")
        self._check_open()
        async with contextlib.aclosing(self._generation.generate(request)) as news:
            async for each in news:
                yield each

    async def close(self) -> None:
        """Fail the requests that still wait, and end the device thread after its current batch."""
        if self._state != "failed":
            self._state = "stopped"
        self._fail_all(Unavailable("the server stopped before it could answer"))
        self._queue.close()
        await self._watch.stop()
        await asyncio.to_thread(self._device.join, 30.0)
        self._tokenizer.close()
        await self._classification.close()

    def _make_generation(
        self, decoder: Decoder, slots: SlotTable, shares: Shares, changed: threading.Condition, limits: EngineLimits
    ) -> Generation:
        return Generation(
            decoder,
            self._classifier,
            slots=slots,
            shares=shares,
            changed=changed,
            tokenizer=self._tokenizer,
            loader=self._loader,
            permits=self._permits,
            limits=limits,
            metrics=self.metrics,
            check_open=self._check_open,
        )

    def _make_device(
        self, slots: SlotTable, limits: EngineLimits, thread: ThreadPoolExecutor, profiler: DeviceProfiler | None
    ) -> DeviceThread:
        return DeviceThread(
            self._classifier,
            self._queue,
            slots,
            thread=thread,
            max_batch_tokens=limits.max_batch_tokens,
            metrics=self.metrics,
            generation=self._generation,
            profiler=profiler,
            on_taken=self._classification.batch_taken,
            on_death=self._device_died,
        )

    def _count_running(self) -> int:
        generating = self._generation.running if self._generation is not None else 0
        return self._classification.running + generating

    def _count_waiting(self) -> int:
        generating = self._generation.waiting if self._generation is not None else 0
        return self._classification.waiting + generating

    def _check_open(self) -> None:
        if self._state != "ok":
            raise Unavailable(f"the engine takes no requests: {self._state}")

    def _device_died(self, error: BaseException) -> None:
        self._state = "failed"
        self._fail_all(InternalError(f"the device thread ended: {error!r}"))
        self._on_death()

    def _fail_all(self, error: EngineError) -> None:
        self._classification.fail_all(error)
        if self._generation is not None:
            self._generation.fail_all(error)

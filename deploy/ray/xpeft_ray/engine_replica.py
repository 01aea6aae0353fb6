"""One engine in a process of its own; Ray Serve runs a replica of it for each device."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

import ray
from ray import serve

from xpeft_profiles import open_store
from xpeft_server.cli.serve.server_logging import configure_server_logging
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import ClassifyRequest, GenerateRequest, News
from xpeft_server.remote.answering import Outcome, classify, generate
from xpeft_server.remote.error_value import ErrorValue
from xpeft_server.remote.trail import Trail
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import LimitsFile, choose_tenant_limits

from .options import check_reach
from .replicas import EngineReport

log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS: Final = 0.5
_SWITCH_SECONDS: Final = 0.001


class EngineReplica:
    """Answers what the ingress forwards. An engine that dies ends its process, and Serve starts another.

    Raises: SettingsInvalid, ModelError, BankError, StoreUrlInvalid or LimitsInvalid if the engine cannot be built.
    """

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        # Imported here: the ingress imports this module too, and does not need torch.
        from xpeft_server.cli.serve.assembly import build_engine

        configure_server_logging(settings)
        nodes: list[dict[str, object]] = ray.nodes()  # type: ignore[no-untyped-call]
        check_reach(settings, sum(bool(node["Alive"]) for node in nodes))
        self._name = serve.get_replica_context().replica_id.unique_id
        self._metrics = Metrics(top_profiles=0)
        self._store = open_store(settings.store)
        tenants = choose_tenant_limits(settings)
        self._engine = build_engine(settings, self._store, self._metrics, tenants=tenants, on_death=self._end)
        self._watching = asyncio.create_task(tenants.watch()) if isinstance(tenants, LimitsFile) else None
        await self._engine.start()
        # As in `xpeft serve`: what is loaded by now stays, and the device thread gets the GIL soon.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH_SECONDS)

    async def classify(self, request: ClassifyRequest) -> Outcome:
        return await classify(self._engine, request)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News | ErrorValue | Trail, None]:
        async with aclosing(generate(self._engine, request)) as news:
            async for each in news:
                yield each

    def report(self) -> EngineReport:
        return EngineReport(
            replica=self._name,
            info=self._engine.info,
            geometry=self._engine.geometry,
            status=self._engine.status(),
            exposition=self._metrics.render(),
        )

    async def __del__(self) -> None:
        """Called by Serve when the replica has nothing left to do."""
        if self._watching is not None:
            self._watching.cancel()
        await self._engine.close()
        await self._store.close()

    def _end(self) -> None:
        """End the process once the errors of the pending requests have left it."""
        log.critical("the engine of replica %s died: its process ends", self._name)
        asyncio.get_running_loop().call_later(_LAST_WORDS_SECONDS, os._exit, 1)

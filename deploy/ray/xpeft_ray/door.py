"""The HTTP side of one ingress: the application of ``xpeft serve`` over engines in other processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xpeft_profiles import ProfileStore
from xpeft_server.api.app import create_app
from xpeft_server.api.errors import ApiError
from xpeft_server.api.replies import error_reply
from xpeft_server.cli.serve.http_parts import HttpParts
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.profiles.store_watch import StoreWatch
from xpeft_server.settings import Settings, is_loopback
from xpeft_server.tenant_limits import LimitsFile, LimitsOfTenants

from .exposition import Exposition
from .remote_engine import INTERVAL, RemoteEngine
from .replicas import Replicas
from .stored_jobs import StoredJobs

log = logging.getLogger(__name__)

_REQUEST_ID: Final = b"x-request-id"
_FLUSH_SECONDS: Final = 2.0


class Peers(Protocol):
    """The application's ingresses, this one among them."""

    async def expositions(self) -> Sequence[Exposition]: ...


class Door:
    """An ASGI application, started and stopped by ASGI's lifespan; it answers once the first replica has reported.

    Without keys it answers only clients on this machine, because it does not decide where Serve's proxies listen.

    Args:
        store: the one that the replicas read too; closed with this.
        parts: closed with this.
        peers: whose metrics are shown beside those of the replicas.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        replicas: Replicas,
        store: ProfileStore,
        parts: HttpParts,
        tenants: LimitsOfTenants,
        metrics: Metrics,
        peers: Peers,
    ) -> None:
        self._settings = settings
        self._store = store
        self._parts = parts
        self._tenants = tenants
        self._metrics = metrics
        self._peers = peers
        self._told: Sequence[Exposition] = ()
        self._jobs = StoredJobs(store.jobs)
        records = self._jobs.records
        self._watch = StoreWatch(store, metrics, on_away=records.store_is_away, on_back=records.store_is_back)
        self._engine = RemoteEngine(replicas, watch=self._watch, on_bank=self._build)
        self._watching: list[asyncio.Task[None]] = []
        self._app: ASGIApp | None = None

    @property
    def expositions(self) -> Mapping[str, bytes]:
        """Replica → its metrics, of engines and ingresses, as of the last round."""
        engines = {report.replica: report.exposition for report in self._engine.reports}
        return engines | {told.replica: told.text for told in self._told}

    async def start(self) -> None:
        """Open the store, or keep trying, and wait for the first replica."""
        self._watching = self._parts.watch()
        if isinstance(self._tenants, LimitsFile):
            self._watching.append(asyncio.create_task(self._tenants.watch()))
        await self._watch.start()
        await self._engine.start()
        self._build()
        self._watching.append(asyncio.create_task(self._ask_peers()))

    async def close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self._engine.close()
        await self._watch.stop()
        await self._store.close()
        await asyncio.to_thread(self._parts.close, _FLUSH_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if self._app is None:
            raise RuntimeError("a request came before the ingress was started")
        if scope["type"] == "http" and not self._parts.keys.required and not _is_near(scope):
            problem = ApiError(403, "loopback_only", "without api_keys only clients on this machine are served")
            await error_reply(problem)(scope, receive, send)
            return
        await self._app(_at_root(scope), receive, _without_our_id(scope, send))

    def _build(self) -> None:
        """Build the application, once for each bank: uploads are checked against it."""
        parts = self._parts
        self._app = create_app(
            self._settings,
            engine=self._engine,
            store=self._store,
            tuner=self._jobs,
            keys=parts.keys,
            metrics=self._metrics,
            audit=parts.audit,
            tenants=self._tenants,
            spans=None if parts.tracing is None else parts.tracing.spans,
        )

    async def _ask_peers(self) -> None:
        while True:
            try:
                self._told = await self._peers.expositions()
            except Exception:
                log.exception("the other ingresses could not be asked for their metrics")
            await asyncio.sleep(INTERVAL)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                with contextlib.suppress(asyncio.CancelledError):
                    await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _is_near(scope: Scope) -> bool:
    client = scope.get("client")
    return client is not None and is_loopback(client[0])


def _at_root(scope: Scope) -> Scope:
    """Without the prefix that the application has in Serve, which the routes do not know."""
    root: str = scope.get("root_path", "")
    if not root or not scope["path"].startswith(root):
        return scope
    path = scope["path"].removeprefix(root) or "/"
    return {**scope, "root_path": "", "path": path, "raw_path": path.encode()}


def _without_our_id(scope: Scope, send: Send) -> Send:
    """Leaves out the request id that Serve's proxy gave the request: the proxy adds it to the answer itself."""
    given = [value for name, value in scope.get("headers", ()) if name == _REQUEST_ID]

    async def pass_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [each for each in message["headers"] if each[0] != _REQUEST_ID or each[1] not in given]
            message = {**message, "headers": headers}
        await send(message)

    return pass_on

"""GET /health, /ready, /info and /metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request

from xpeft_profiles import ProfileStore
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings
from xpeft_server.version import VERSION

from .drain import Drain
from .engine_port import EnginePort
from .replies import Reply, json_reply

_OK: Final = "ok"
_NO_CACHE: Final = (b"cache-control", b"no-store")


class Probes:
    """What the server says of itself; nothing of any tenant."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: EnginePort,
        store: ProfileStore,
        metrics: Metrics,
        drain: Drain,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._scheme = store.scheme
        self._metrics = metrics
        self._drain = drain

    async def health(self, request: Request) -> Reply:
        del request
        return json_reply({"status": _OK}, headers=[_NO_CACHE])

    async def ready(self, request: Request) -> Reply:
        del request
        status = self._engine.status()
        checks = {**status.checks, "server": "draining" if self._drain.begun else _OK}
        if status.ready and not self._drain.begun:
            return json_reply({"status": "ready", "checks": checks}, headers=[_NO_CACHE])
        headers = [_NO_CACHE, (b"retry-after", b"1")]
        return json_reply({"status": "not_ready", "checks": checks}, status=503, headers=headers)

    async def metrics(self, request: Request) -> Reply:
        del request
        return Reply(await self._metrics.page(), media_type=CONTENT_TYPE_PLAIN_0_0_4.encode())

    async def info(self, request: Request) -> Reply:
        del request
        info, bank, settings = self._engine.info, self._engine.geometry, self._settings
        document = {
            "version": VERSION,
            "plm": info.plm,
            "model_type": info.model_type,
            "device": info.device,
            "dtype": info.dtype,
            "kernels": info.kernels,
            "cuda_graphs": {
                "count": info.graphs,
                "tokens": info.graph_tokens,
                "step_tokens": info.graph_step_tokens,
                "bytes": info.graph_bytes,
            },
            "generates": info.generates,
            "store": self._scheme,
            "bank": {
                "fingerprint": bank.fingerprint,
                "blocks": bank.blocks,
                "adapters": bank.adapters,
                "hidden": bank.hidden,
                "width": bank.width,
                "layer_norm": bank.layer_norm,
                "shared_heads": dict(bank.shared_heads),
            },
            "limits": {
                "context_length": info.context_length,
                "max_total_tokens": info.max_total_tokens,
                "slots": info.slots,
                "max_batch_tokens": info.max_batch_tokens,
                "queue_limit": info.queue_limit,
                "queue_token_limit": info.queue_token_limit,
                "max_inputs": info.max_inputs,
                "max_sequences": info.max_sequences,
                "kv_tokens": info.kv_tokens,
                "max_body_bytes": settings.max_body_bytes,
                "max_profile_bytes": settings.max_profile_bytes,
            },
        }
        return json_reply(document)

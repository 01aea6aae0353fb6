"""Both ends of a connection to a tuner in another process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from xpeft_profiles import JobKey, JobRecord
from xpeft_server.api.tuning.tuner_port import TunerPort
from xpeft_server.jobs.requests import TuningRequest

from .peer import Method, Peer


def tuner_methods(tuner: TunerPort) -> Mapping[str, Method]:
    """What a `ConnectedTuner` calls."""
    return {
        "submit_job": tuner.submit,
        "get_job": tuner.get,
        "follow_job": tuner.follow,
        "cancel_job": tuner.cancel,
        "list_jobs": lambda tenant, limit, cursor: tuner.list(tenant, limit=limit, cursor=cursor),
    }


class ConnectedTuner:
    """A `TunerPort`. Every method may also raise Unavailable."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def submit(self, request: TuningRequest) -> JobRecord:
        record: JobRecord = await self._peer.call("submit_job", request)
        return record

    async def get(self, key: JobKey) -> JobRecord:
        record: JobRecord = await self._peer.call("get_job", key)
        return record

    async def follow(self, key: JobKey) -> AsyncGenerator[JobRecord, None]:
        async with aclosing(self._peer.stream("follow_job", key)) as records:
            async for record in records:
                yield record

    async def cancel(self, key: JobKey) -> JobRecord:
        record: JobRecord = await self._peer.call("cancel_job", key)
        return record

    async def list(self, tenant: str, *, limit: int, cursor: str | None) -> tuple[list[JobRecord], str | None]:
        page: tuple[list[JobRecord], str | None] = await self._peer.call("list_jobs", tenant, limit, cursor)
        return page

"""Tuning jobs of ``redis://``: every server that shares the database sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.asyncio

from ..errors import TooManyJobs
from ..jobs.reader import FoundJob, JobReader
from ..jobs.record import JobKey, JobRecord, decode_job, encode_job
from ..jobs.store import KEPT_SECONDS, JobPage, StoredJob
from ..listing import check_limit, decode_cursor, encode_cursor
from ..names import check_name
from .job_scripts import ADD, RENEW, REPLACE
from .key_scan import Ask, KeyScan
from .name_reader import NameReader

Argument = str | bytes | float


class RedisJobStore:
    """Keys: ``xpeft:{TENANT}:job:ID``, ``xpeft:{TENANT}:jobs`` and ``xpeft:{TENANT}:jobs:unfinished``.

    Args:
        read: runs a command, once more if its connection broke; once: runs it and no second time. Both raise
            StoreUnavailable.
    """

    def __init__(self, client: redis.asyncio.Redis, names: NameReader, scan: KeyScan, *, read: Ask, once: Ask) -> None:
        self._client = client
        self._names = names
        self._scan = scan
        self._read = read
        self._once = once
        self._reader = JobReader()
        self._add_script = client.register_script(ADD)
        self._replace_script = client.register_script(REPLACE)
        self._renew_script = client.register_script(RENEW)

    async def add(self, record: JobRecord, *, lease: float, most: int, keep: int) -> None:
        check_name(record.tenant, param="tenant")
        check_name(record.profile)
        tenant = record.tenant
        keys = [_job_key(tenant, record.id), _jobs_key(tenant), _unfinished_key(tenant)]
        arguments: list[Argument] = [record.id, encode_job(record), lease, most, keep, _job_key(tenant, "")]
        if not await self._once(lambda: self._add_script(keys=keys, args=arguments)):
            raise TooManyJobs(most)

    async def get(self, key: JobKey) -> StoredJob | None:
        found = await self._snapshot(key.tenant, [key.id])
        return StoredJob(decode_job(found[0].record), found[0].lapsed) if found else None

    async def replace(self, record: JobRecord, *, lease: float) -> bool:
        keys = [_job_key(*record.key), _unfinished_key(record.tenant)]
        dropped = "" if record.finished is None else int((record.finished + KEPT_SECONDS) * 1000)
        arguments: list[Argument] = [record.id, encode_job(record), lease, dropped]
        return bool(await self._once(lambda: self._replace_script(keys=keys, args=arguments)))

    async def renew(self, keys: Sequence[JobKey], *, lease: float) -> list[bool]:
        renewed: dict[JobKey, bool] = {}
        for tenant in dict.fromkeys(key.tenant for key in keys):
            ids = [key.id for key in keys if key.tenant == tenant]
            answers = await self._renewed(tenant, ids, lease)
            renewed.update({JobKey(tenant, id_): bool(answer) for id_, answer in zip(ids, answers, strict=True)})
        return [renewed[key] for key in keys]

    async def _renewed(self, tenant: str, ids: list[str], lease: float) -> list[int]:
        answers: list[int] = await self._once(
            lambda: self._renew_script(keys=[_unfinished_key(tenant)], args=[lease, *ids])
        )
        return answers

    async def unfinished(self) -> list[StoredJob]:
        jobs: list[StoredJob] = []
        async for tenant in self._scan.tenants("jobs:unfinished"):
            key = _unfinished_key(tenant)
            ids = await self._read(lambda key=key: self._client.zrange(key, 0, -1))  # type: ignore[misc]
            found = await self._snapshot(tenant, self._names.readable(ids, _a_job(tenant)))
            jobs += [job for job in self._reader.readable(found) if job.record.finished is None]
        return jobs

    async def _snapshot(self, tenant: str, ids: Sequence[str]) -> list[FoundJob]:
        """Records, leases and the time, all of one moment. One that was dropped, or whose time is over, is left out."""
        if not ids:
            return []

        async def ask() -> Any:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.mget([_job_key(tenant, id_) for id_ in ids])
                pipe.zrange(_unfinished_key(tenant), 0, -1, withscores=True)
                pipe.time()
                return await pipe.execute()

        records, leases, (seconds, micros) = await self._read(ask)
        now = seconds + micros / 1e6
        lapsed = {id_ for id_, until in leases if until <= now}
        return [
            FoundJob(JobKey(tenant, id_), record, id_.encode() in lapsed)
            for id_, record in zip(ids, records, strict=True)
            if record is not None
        ]

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None) -> JobPage:
        check_limit(limit)
        before = decode_cursor(cursor)
        highest = b"(" + before.encode() if before else b"+"

        async def page(begin: bytes, count: int) -> Any:
            key = _jobs_key(tenant)
            return await self._read(lambda: self._client.zrevrangebylex(key, begin, b"-", start=0, num=count))

        ids = await self._names.first(page, highest, limit + 1, _a_job(tenant))
        jobs = self._reader.readable(await self._snapshot(tenant, ids[:limit]))
        return JobPage(tuple(jobs), encode_cursor(ids[limit - 1]) if len(ids) > limit else None)


def _job_key(tenant: str, id_: str) -> str:
    return f"xpeft:{{{tenant}}}:job:{id_}"


def _jobs_key(tenant: str) -> str:
    return f"xpeft:{{{tenant}}}:jobs"


def _a_job(tenant: str) -> str:
    return f"a tuning job of tenant {tenant!r}"


def _unfinished_key(tenant: str) -> str:
    return f"xpeft:{{{tenant}}}:jobs:unfinished"

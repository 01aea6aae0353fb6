"""Tuning jobs of one server: accepted, run one at a time, watched and cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any, Final

from xpeft_profiles import JobKey, JobRecord, ProfileStore, StoreUnavailable, new_job_id
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.metrics import Metrics

from .errors import JobNotFound, TuningOff
from .failures import failure_of
from .job import Job
from .lease_keeper import LeaseKeeper
from .process_identity import this_process
from .publisher import Publisher
from .records import LEASE, Records, check_cancelled, interrupted
from .requests import TuningRequest
from .turns import Turns
from .worker_port import Progress, Tuned, Worker

logger = logging.getLogger(__name__)

_KEPT: Final = 1_000  # records of a tenant
_PUBLISH_TRIES: Final = 60  # a second apart
_EVENT_SECONDS: Final = 0.2  # least time between two records that a follower gets
_FOREIGN_SECONDS: Final = 1.0  # between two looks at another server's job


class Tuner:
    """Its methods are for one event loop, after `start`.

    Args:
        publisher: puts what was tuned into ``store``.
        check: refuses what cannot be tuned; runs in a thread. Raises: InvalidTuning.
        most: unfinished jobs that a tenant may have; 0 takes none.
    """

    def __init__(
        self,
        store: ProfileStore,
        *,
        worker: Worker,
        publisher: Publisher,
        check: Callable[[TuningRequest], None],
        most: int,
        metrics: Metrics,
    ) -> None:
        self._store = store.jobs
        self._worker = worker
        self._publisher = publisher
        self._check = check
        self._most = most
        self._owner = this_process()
        self._records = Records(self._store)
        self._keeper = LeaseKeeper(self._store, self._records, ping=store.ping)
        self._turns = Turns()
        self._closed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._outcomes = metrics.tuning_outcomes
        metrics.tuning_jobs.set_function(self._count)

    async def start(self) -> None:
        """Begin to work. Orphaned jobs are ended first, or once the store answers."""
        await self._keeper.try_to_renew()
        self._tasks = [
            asyncio.create_task(self._keeper.run(), name="tuning-leases"),
            asyncio.create_task(self._work(), name="tuning-jobs"),
        ]

    async def submit(self, request: TuningRequest) -> JobRecord:
        """Raises: TuningOff, InvalidTuning, TooManyJobs, StoreUnavailable, Unavailable once it is closed."""
        if not self._most:
            raise TuningOff("this server tunes no profiles (tuning_jobs_per_tenant is 0)")
        await asyncio.to_thread(self._check, request)
        created = time.time()
        tenant, profile = request.profile
        record = JobRecord(
            tenant=tenant,
            id=new_job_id(created),
            profile=profile,
            owner=self._owner,
            status="queued",
            created=created,
        )
        if self._closed.is_set():
            raise Unavailable("the server is stopping")
        try:
            await self._store.add(record, lease=LEASE, most=self._most, keep=_KEPT)
        except StoreUnavailable:
            self._take_back(record, request)
            raise
        job = self._records.own[record.key] = Job(record, request, on_end=self._ended)
        if self._closed.is_set():
            await self._interrupt(job)
        else:
            self._turns.add(job)
        return job.record

    async def get(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound, StoreUnavailable."""
        return await self._records.get(key)

    async def list(self, tenant: str, *, limit: int, cursor: str | None) -> tuple[list[JobRecord], str | None]:
        """A page, newest first, and the cursor of the next. Raises: CursorInvalid, StoreUnavailable."""
        return await self._records.page(tenant, limit=limit, cursor=cursor)

    async def follow(self, key: JobKey) -> AsyncGenerator[JobRecord, None]:
        """The record as it is, and again after every change; the last one is finished, unless the server stops.

        Raises: JobNotFound, StoreUnavailable, both before the first record only.
        """
        job = self._records.own.get(key)
        seen = await self.get(key) if job is None else job.record
        yield seen
        while seen.finished is None:
            if job is None:
                record = await self._foreign_after(key, seen)
                if record is None:
                    return
                seen = record
            else:
                await asyncio.sleep(_EVENT_SECONDS)
                seen = await job.after(seen)
            yield seen

    async def cancel(self, key: JobKey) -> JobRecord:
        """Raises: JobNotFound, JobFinished, StoreUnavailable if it is another server's job."""
        job = self._records.own.get(key)
        if job is None:
            return await self._records.cancel(key)
        async with job.deciding:
            job.change(status="cancelled", finished=time.time())
        await self._save(job)
        check_cancelled(job.record)
        return job.record

    async def close(self) -> None:
        """Interrupt every job, end the worker, tell the store. Nothing happens the second time."""
        if self._closed.is_set():
            return
        self._closed.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        jobs = list(self._records.own.values())
        await asyncio.gather(*(self._interrupt(job) for job in jobs), self._worker.close())
        await asyncio.gather(*(job.task for job in jobs if job.task is not None), return_exceptions=True)

    async def _work(self) -> None:
        while True:
            job = await self._turns.take()
            try:
                await self._do(job)
            except Exception as error:
                job.change(status="failed", finished=time.time(), error=failure_of(error, job.key))

    async def _do(self, job: Job) -> None:
        job.change(status="running", started=time.time())
        await self._save(job)
        if not job.finished:
            job.task = asyncio.create_task(self._tune(job), name=f"tuning {job.key.id}")
            await asyncio.wait([job.task])
        await self._save(job)

    async def _tune(self, job: Job) -> None:
        def show(progress: Progress) -> None:
            job.change(progress=progress)

        try:
            await self._publish(job, await self._worker.tune(job.request, show))
        except Exception as error:
            async with job.deciding:
                await self._finish(job, status="failed", error=failure_of(error, job.key))

    async def _publish(self, job: Job, tuned: Tuned) -> None:
        """Store the profile and finish the job; tried again while the store is down."""
        profile = await self._publisher.check(tuned.file)
        for tries in range(1, _PUBLISH_TRIES + 1):
            async with job.deciding:
                try:
                    # Another server may have ended it since its lease was renewed.
                    await self._save(job)
                    if job.finished:
                        return
                    version = await self._publisher.put(job.request, profile, again=tries > 1)
                    result = {"profile_version": version, **tuned.report}
                    await self._finish(job, status="succeeded", result=result)
                    return
                except StoreUnavailable:
                    if tries == _PUBLISH_TRIES:
                        raise
            await asyncio.sleep(1)

    async def _finish(self, job: Job, **fields: Any) -> None:
        """The store first: once the end is read here, no other server can end the job otherwise."""
        record = replace(job.record, finished=time.time(), **fields)
        with contextlib.suppress(StoreUnavailable):
            record = job.saved = await self._records.end(record) or record
        job.become(record)

    def _ended(self, job: Job) -> None:
        """Stop waiting and working, whoever ended the job."""
        self._turns.remove(job)
        if job.task is not None and job.task is not asyncio.current_task():
            job.task.cancel()
        self._outcomes[job.record.status].inc()

    def _take_back(self, record: JobRecord, request: TuningRequest) -> None:
        """End a job that may have been stored all the same: it would count as the tenant's until its lease lapses."""
        job = Job(record, replace(request, examples=()), on_end=lambda _: None)
        job.become(interrupted(record))
        self._records.own[job.key] = job
        asyncio.get_running_loop().call_later(LEASE, self._records.own.pop, job.key, None)

    async def _interrupt(self, job: Job) -> None:
        async with job.deciding:
            job.become(interrupted(job.record))
        await self._save(job)

    async def _save(self, job: Job) -> None:
        """Save now, or else in the next round of renewals."""
        with contextlib.suppress(StoreUnavailable):
            await self._keeper.save(job)

    async def _foreign_after(self, key: JobKey, seen: JobRecord) -> JobRecord | None:
        """Wait for a change of another server's job. Returns: None if the job is gone, or this server stops."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), _FOREIGN_SECONDS)
                return None
            try:
                record = await self._records.get(key)
            except JobNotFound:
                return None
            except StoreUnavailable:
                continue
            if record != seen:
                return record

    def _count(self) -> dict[str, int]:
        states = [job.record.status for job in self._records.own.values()]
        return {status: states.count(status) for status in ("queued", "running")}

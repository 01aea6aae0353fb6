"""``xpeft bench stores``: what a store does with very many profiles. No model, no server."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from xpeft_profiles import KeyedRecord, ProfileKey, ProfileStore, open_store
from xpeft_profiles.listing import encode_cursor
from xpeft_profiles.transfer import (
    Batch,
    BatchReader,
    Refusal,
    Status,
    StoreTarget,
    Totals,
    import_profiles,
    open_source,
)

from .profile_lines import profile_key, write_profile_lines
from .results import Result, Unit
from .rounds import percentiles
from .store_size import StoreInvalid, store_bytes

_FILE_BYTES_MAX: Final = 1 << 20  # of a profile file, the server's default
_AT_ONCE: Final = 1000  # keys of one get_many
_BATCH: Final = 32  # profiles of a batch of texts
_PAGE: Final = 100
_READY: Final = 20_480  # records that are put without reading a file
_READY_TENANT: Final = "bench-ready"
_CALLS_A_ROUND: Final = 20
_SCHEMES: Final = ("sqlite", "redis")


@dataclass(frozen=True, slots=True)
class StoresPlan:
    """``store``: URL, of a store without the benchmark's profiles; it keeps them."""

    store: str
    profiles: int
    tenants: int
    rounds: int
    seed: int

    def settings(self) -> dict[str, object]:
        return asdict(self)


def run_stores(plan: StoresPlan, *, on_step: Callable[[str], None]) -> list[Result]:
    """Raises: StoreInvalid, ProfileStoreError."""
    store = open_store(plan.store)
    if store.scheme not in _SCHEMES:
        raise StoreInvalid(f"store {plan.store!r} is none that keeps profiles: it must be sqlite:///FILE or redis://…")
    with tempfile.TemporaryDirectory(prefix="xpeft-bench-") as folder:
        lines = Path(folder) / "profiles.jsonl"
        on_step(f"writing {plan.profiles} profiles to a temporary file")
        write_profile_lines(lines, profiles=plan.profiles, tenants=plan.tenants, seed=plan.seed)
        return asyncio.run(_Run(plan, store, lines, on_step).results())


class _Run:
    def __init__(self, plan: StoresPlan, store: ProfileStore, lines: Path, on_step: Callable[[str], None]) -> None:
        self._plan = plan
        self._store = store
        self._lines = lines
        self._on_step = on_step
        self._random = random.Random(plan.seed)

    async def results(self) -> list[Result]:
        await self._store.open()
        try:
            if (await self._store.list(profile_key(0, tenants=1).tenant, limit=1)).profiles:
                raise StoreInvalid("the store has profiles of this benchmark already: give one without them")
            return [await self._read(), *await self._imported(), *await self._asked()]
        finally:
            await self._store.close()

    async def _read(self) -> Result:
        self._on_step("reading and checking")
        seconds, cpu = await self._import_into(_Nowhere())
        return self._speed("read", "the file read and checked, nothing stored", self._plan.profiles, seconds, cpu)

    async def _imported(self) -> list[Result]:
        before = store_bytes(self._plan.store)
        self._on_step("importing")
        seconds, cpu = await self._import_into(StoreTarget(self._store))
        size = store_bytes(self._plan.store) - before
        whole = self._speed("import", "the file read, checked and stored", self._plan.profiles, seconds, cpu)
        room = {"bytes_per_profile": round(size / self._plan.profiles, 1), "store_mb": round(size / 1e6, 1)}
        self._on_step("storing records that are ready")
        return [replace(whole, details={**whole.details, **room, **_memory()}), await self._ready()]

    async def _ready(self) -> Result:
        """The same records under a tenant of their own."""
        reader = self._reader()
        batches: list[list[KeyedRecord]] = []
        with closing(reader.source):
            while sum(map(len, batches)) < min(_READY, self._plan.profiles) and (batch := reader.read()) is not None:
                batches.append([each._replace(key=ProfileKey(_READY_TENANT, each.key.name)) for each in batch.records])
        began, cpu = time.perf_counter(), time.process_time()
        for records in batches:
            await self._store.put_many(records)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return self._speed(
            "put_many", "records in memory stored, a batch at a time", sum(map(len, batches)), seconds, cpu
        )

    async def _import_into(self, target: StoreTarget | _Nowhere) -> tuple[float, float]:
        """Seconds, and seconds of this process on a processor. Raises: StoreInvalid if not all was created."""
        totals = Totals()
        reader = self._reader()
        began, cpu = time.perf_counter(), time.process_time()
        with closing(reader.source):
            await import_profiles(reader, target, totals, on_batch=lambda _: None)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        if totals.created != self._plan.profiles:
            raise StoreInvalid(f"of {self._plan.profiles} profiles {totals.created} were created")
        return seconds, cpu

    def _reader(self) -> BatchReader:
        source = open_source(self._lines, max_bytes=_FILE_BYTES_MAX)
        return BatchReader(source, tenant=None, max_bytes=_FILE_BYTES_MAX)

    async def _asked(self) -> list[Result]:
        middle = profile_key(self._plan.profiles // 2, tenants=self._plan.tenants)
        cursor, prefix = encode_cursor(middle.name), middle.name[:-2]
        same = self._keys(_BATCH)
        return [
            await self._calls(
                f"get_many {_AT_ONCE}",
                f"records of {_AT_ONCE} random profiles",
                lambda: self._store.get_many(self._keys(_AT_ONCE)),
                unit="profiles",
                each=_AT_ONCE,
            ),
            await self._calls(
                f"versions {_BATCH}",
                f"the question of a batch of {_BATCH}, random ones of all profiles",
                lambda: self._store.versions(self._keys(_BATCH)),
            ),
            await self._calls(
                f"versions of the same {_BATCH}", "the question again and again", lambda: self._store.versions(same)
            ),
            await self._calls(
                f"page of {_PAGE}",
                "a page of the list, from its middle",
                lambda: self._store.list(middle.tenant, limit=_PAGE, cursor=cursor),
            ),
            await self._calls(
                "prefix",
                f"the first page of what begins with {len(prefix)} characters",
                lambda: self._store.list(middle.tenant, limit=_PAGE, prefix=prefix),
            ),
        ]

    async def _calls(
        self,
        variant: str,
        meaning: str,
        call: Callable[[], Awaitable[object]],
        *,
        unit: Unit = "calls",
        each: int = 1,
    ) -> Result:
        """Rounds of calls, one after the other."""
        self._on_step(variant)
        await call()
        seconds: list[float] = []
        speeds: list[float] = []
        for _ in range(self._plan.rounds):
            round_seconds = [await _timed(call) for _ in range(_CALLS_A_ROUND)]
            speeds.append(each * len(round_seconds) / sum(round_seconds))
            seconds += round_seconds
        median, p95 = percentiles([1000 * each for each in seconds], [50, 95])
        return Result(variant, meaning, unit, speeds, details={"median_ms": round(median, 4), "p95_ms": round(p95, 4)})

    def _keys(self, count: int) -> list[ProfileKey]:
        indices = self._random.choices(range(self._plan.profiles), k=count)
        return [profile_key(index, tenants=self._plan.tenants) for index in indices]

    @staticmethod
    def _speed(variant: str, meaning: str, profiles: int, seconds: float, cpu: float) -> Result:
        details = {
            "profiles": profiles,
            "seconds": round(seconds, 2),
            "cpu_us_per_profile": round(1e6 * cpu / profiles, 2),
        }
        return Result(variant, meaning, "profiles", [profiles / seconds], details=details)


class _Nowhere:
    async def put(self, batch: Batch) -> Sequence[Status | Refusal]:
        return ["created"] * len(batch.records)


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


def _memory() -> dict[str, float]:
    """Of this process, now and at its highest, in 10^6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rss_mb": round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1), "peak_rss_mb": round(peak / 1e6, 1)}

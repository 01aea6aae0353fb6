"""``redis://``, ``rediss://``, ``unix://``: profiles that many servers share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..errors import PreconditionFailed, StoreUnavailable, TooManyProfiles
from ..jobs.store import JobStore
from ..listing import PAGE_BYTES, check_limit, decode_cursor, encode_cursor, listing_of
from ..names import ProfileKey, check_keys, check_name
from ..portions import PORTION_BYTES, portions
from ..profile import Profile
from ..record.writer import encode_record
from ..store import NO_CONDITION, KeyedRecord, ListPage, Match, ProfileListing, PutOutcome, StoredProfile
from .chunks import Chunk, chunks_of
from .job_store import RedisJobStore
from .key_scan import KeyScan
from .name_reader import NameReader
from .scripts import DELETE, NAMES_BACK, PUT, PUT_MANY, TIMES, open_envelope, precondition_arguments

T = TypeVar("T")
# So many records a list has in memory at a time; of large ones fewer, once it has seen the first few.
LIST_CHUNK = 64
LIST_FIRST = 2
UNUSED = ("xpeft:ping", "xpeft:pong")  # keys that never are, of two slots of a cluster


class RedisStore:
    """Profiles in a Redis server; its own persistence (``appendfsync always``) makes them durable.

    Keys: ``xpeft:{TENANT}:profile:NAME``, ``xpeft:{TENANT}:version:NAME``, the sorted set ``xpeft:{TENANT}:names`` and
    ``xpeft:{TENANT}:written``; the braces are Redis's hash tag, so a tenant lives in one cluster slot.

    A read whose connection broke is sent once more. A write never is: it may have happened, and done again it
    would be judged by its own result. A Redis that lets nobody write, as a master that was demoted, is away: what it
    has may be old. Then all connections are given up, as behind the same address there may soon be another.

    Args:
        url: may set ``socket_timeout``, ``socket_connect_timeout`` (seconds) and ``max_connections`` in its query.
        connect_seconds, read_seconds: the limits where the URL sets none.
    Raises: ValueError if the URL is none.
    """

    scheme = "redis"

    def __init__(
        self, url: str, *, connect_seconds: float = 1.0, read_seconds: float = 2.0, connections: int = 32
    ) -> None:
        # RESP2: with RESP3 redis-py skips the check that finds a pooled connection cut by a restart.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            socket_connect_timeout=connect_seconds,
            socket_timeout=read_seconds,
            max_connections=connections,
            timeout=read_seconds,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._names = NameReader()
        self._scan = KeyScan(self._client, self._names, self._read)
        self.jobs: JobStore = RedisJobStore(self._client, self._names, self._scan, read=self._read, once=self._once)
        self._put_script = self._client.register_script(PUT)
        self._put_many_script = self._client.register_script(PUT_MANY)
        self._delete_script = self._client.register_script(DELETE)
        self._names_script = self._client.register_script(NAMES_BACK)
        where = pool.connection_kwargs
        self._place = where.get("path") or f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"

    async def open(self) -> None:
        await self.ping()

    async def get(self, key: ProfileKey) -> StoredProfile | None:
        (stored,) = await self.get_many([key])
        return stored

    async def get_many(self, keys: Sequence[ProfileKey]) -> list[StoredProfile | None]:
        values = await self._values("profile", keys)
        foreign = await self._foreign([key for key, value in zip(keys, values, strict=True) if value is None])
        return [
            open_envelope(b"") if key in foreign else None if value is None else open_envelope(value)
            for key, value in zip(keys, values, strict=True)
        ]

    async def versions(self, keys: Sequence[ProfileKey]) -> list[str | None]:
        values = await self._values("version", keys)
        return [None if value is None else value.decode("ascii", "replace") for value in values]

    async def put(
        self, key: ProfileKey, profile: Profile, *, match: Match = NO_CONDITION, most: int | None = None
    ) -> PutOutcome:
        check_name(key.tenant, param="tenant")
        check_name(key.name)
        version = profile.version
        digest = bytes.fromhex(version.removeprefix("sha256:"))
        limit = -1 if most is None else most
        arguments = [key.name, version, digest, encode_record(profile), limit, 0, *precondition_arguments(match)]
        status, times = await self._run(self._put_script, key, arguments)
        if status == "lost":
            await self._bring_names_back(key.tenant)
            arguments[5] = 1
            status, times = await self._run(self._put_script, key, arguments)
        if status == "full":
            raise TooManyProfiles(limit)
        return PutOutcome(version, status, *TIMES.unpack(times))

    async def put_many(self, records: Sequence[KeyedRecord], *, replace: bool = True) -> list[PutOutcome]:
        if not records:
            return []
        check_keys(record.key for record in records)
        outcomes: dict[int, PutOutcome] = {}
        for chunks in portions(chunks_of(records), lambda chunk: chunk.bytes):
            answers = await self._put_chunks(chunks, replace=replace, script_known=bool(outcomes))
            for chunk, answer in zip(chunks, answers, strict=True):
                outcomes.update(chunk.outcomes(answer, records))
            for tenant in {chunk.tenant for chunk, answer in zip(chunks, answers, strict=True) if answer[-1]}:
                await self._bring_names_back(tenant)
        return [outcomes[place] for place in range(len(records))]

    async def _put_chunks(self, chunks: Sequence[Chunk], *, replace: bool, script_known: bool) -> Sequence[Any]:
        """What the script returned of each; unless it is known to the server it is asked whether it knows it."""
        script: Any = self._put_many_script

        async def write() -> Sequence[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for chunk in chunks:
                    begin = f"xpeft:{{{chunk.tenant}}}:"
                    pipe.evalsha(
                        script.sha,
                        2,
                        f"{begin}names",
                        f"{begin}written",
                        f"{begin}version:",
                        f"{begin}profile:",
                        int(replace),
                        *chunk.arguments,
                    )
                if not script_known:
                    pipe.scripts.add(script)
                answers: Sequence[Any] = await pipe.execute()
                return answers

        return await self._once(write)

    async def _bring_names_back(self, tenant: str) -> None:
        """Put the names of all the tenant's versions into its set of names again."""
        begin = f"xpeft:{{{tenant}}}:version:"
        async for keys in self._scan.keys(f"{begin}*"):
            names = [key[len(begin) :] for key in keys]
            await self._once(
                lambda some=names: self._names_script(keys=[f"xpeft:{{{tenant}}}:names"], args=[begin, *some])  # type: ignore[misc]
            )

    async def delete(self, key: ProfileKey, *, match: Match = NO_CONDITION) -> bool:
        status, _ = await self._run(self._delete_script, key, [key.name, *precondition_arguments(match)])
        return bool(status == "deleted")

    async def list(self, tenant: str, *, limit: int, cursor: str | None = None, prefix: str = "") -> ListPage:
        check_limit(limit)
        after, first = decode_cursor(cursor), prefix.encode()
        lowest = b"(" + after.encode() if after >= prefix and after else b"[" + first
        highest = b"(" + first + b"\xff"

        async def page(begin: bytes, count: int) -> Any:
            key = f"xpeft:{{{tenant}}}:names"
            return await self._read(lambda: self._client.zrangebylex(key, begin, highest, 0, count))

        names = await self._names.first(page, lowest, limit + 1, f"a name of tenant {tenant!r}")
        lines: list[ProfileListing] = []
        done = size = 0
        while done < min(limit, len(names)) and size < PAGE_BYTES:
            fitting = PORTION_BYTES * done // max(size, 1) if done else LIST_FIRST
            chunk = names[done : min(done + max(1, min(fitting, LIST_CHUNK)), limit)]
            profiles = await self.get_many([ProfileKey(tenant, name) for name in chunk])
            # The checksums of large records take a while, in which the event loop has others to serve.
            lines += await asyncio.to_thread(_lines, chunk, profiles)
            done += len(chunk)
            size = sum(line.bytes for line in lines)
        return ListPage(tuple(lines), encode_cursor(names[done - 1]) if len(names) > done else None)

    def tenants(self) -> AsyncIterator[str]:
        return self._scan.tenants("names")

    async def ping(self) -> None:
        await self._read(self._ping)

    async def _ping(self) -> None:
        """Asks as a batch does: Sentinel, a cluster, or who refuses this server its reads, would answer a mere PING.

        Raises: ReadOnlyError where nobody may write, though nothing is written here.
        """
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.mget(UNUSED)
            pipe.delete(UNUSED[0])
            versions, deleted = await pipe.execute(raise_on_error=False)
        if isinstance(versions, Exception):
            raise versions
        # That a write would be refused for another reason does not make the records old.
        if isinstance(deleted, redis.ReadOnlyError):
            raise deleted

    async def close(self) -> None:
        """Ends the connections; a later call would open new ones."""
        await self._once(lambda: self._client.aclose(close_connection_pool=True))

    async def _values(self, kind: str, keys: Sequence[ProfileKey]) -> Sequence[bytes | None]:
        if not keys:
            return []
        names = [f"xpeft:{{{tenant}}}:{kind}:{name}" for tenant, name in keys]
        values: Sequence[bytes | None] = await self._read(lambda: self._client.mget(names))
        return values

    async def _foreign(self, keys: Sequence[ProfileKey]) -> set[ProfileKey]:
        """Of keys without a string: those where a value of another type stands, which is no absent profile."""
        if not keys:
            return set()

        async def ask() -> Any:
            async with self._client.pipeline(transaction=False) as pipe:
                for tenant, name in keys:
                    pipe.type(f"xpeft:{{{tenant}}}:profile:{name}")
                return await pipe.execute()

        types = await self._read(ask)
        # One that has become a string since then was written after the question.
        return {key for key, type_ in zip(keys, types, strict=True) if type_ not in (b"none", b"string")}

    async def _run(self, script: Any, key: ProfileKey, arguments: Sequence[Any]) -> tuple[Any, bytes]:
        """Raises: PreconditionFailed, StoreUnavailable."""
        tenant, name = key
        keys = [f"xpeft:{{{tenant}}}:{kind}" for kind in (f"profile:{name}", f"version:{name}", "names", "written")]
        status, rest = await self._once(lambda: script(keys=keys, args=arguments))
        if status == b"refused":
            raise PreconditionFailed(rest.decode("ascii", "replace") or None)
        return status.decode(), rest

    async def _read(self, command: Callable[[], Awaitable[Any]]) -> Any:
        async def twice_at_most() -> Any:
            try:
                return await _sent(command)
            except redis.ConnectionError:
                return await _sent(command)

        return await self._once(twice_at_most)

    async def _once(self, command: Callable[[], Awaitable[T]]) -> T:
        try:
            return await _sent(command)
        except (redis.RedisError, OSError) as error:
            if isinstance(error, redis.ReadOnlyError):
                await self._client.connection_pool.disconnect()
            raise StoreUnavailable(f"redis at {self._place} failed: {error}") from error


def _lines(names: Sequence[str], profiles: Sequence[StoredProfile | None]) -> list[ProfileListing]:
    """Without those that were deleted since the names were read."""
    return [listing_of(name, stored) for name, stored in zip(names, profiles, strict=True) if stored]


async def _sent(command: Callable[[], Awaitable[T]]) -> T:
    """Raises: redis.ConnectionError where uvloop finds, as the command is sent, that the connection has closed."""
    try:
        return await command()
    except RuntimeError as error:
        if "closed" not in str(error):
            raise
        raise redis.ConnectionError(str(error)) from error

"""What only the Redis store has to promise: keys, faults of a server far away, and its return."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot

from xpeft_profiles import (
    KeyedRecord,
    Match,
    PreconditionFailed,
    ProfileKey,
    RecordDamaged,
    RedisStore,
    StoreUnavailable,
    TooManyProfiles,
    encode_record,
)
from xpeft_profiles.jobs.record import JobRecord, new_job_id
from xpeft_profiles.redis import key_scan
from xpeft_profiles.transfer import FolderTarget, export_profiles

KEY = ProfileKey("acme", "support")
JOB = JobRecord(tenant="acme", id=new_job_id(1.0), profile="desk", owner="host 1", status="queued", created=1.0)
MakeProfile = Callable[..., Any]
# What a test may take for "in time", with read_seconds=0.2 and a busy machine.
IN_TIME = 10.0
LINK_BYTES = 4 << 20  # a second
LINK_SECONDS = 3.0  # after which an answer is given up: a busy machine may hold it up for two


@pytest.fixture
async def store(own_redis: Any) -> AsyncIterator[RedisStore]:
    opened = RedisStore(own_redis.url, connect_seconds=20, read_seconds=20)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def hasty_store(own_redis: Any) -> AsyncIterator[RedisStore]:
    opened = RedisStore(own_redis.url, connect_seconds=0.5, read_seconds=0.2)
    yield opened
    await opened.close()


@pytest.fixture
async def calm_store(redis_client: redis.Redis, redis_server: Any) -> AsyncIterator[RedisStore]:
    """On the server that all tests share."""
    opened = RedisStore(redis_server.url)
    yield opened
    await opened.close()


@pytest.fixture
async def far_store(redis_client: redis.Redis, redis_server: Any) -> AsyncIterator[RedisStore]:
    """Over a link that carries `LINK_BYTES` a second, for answers that are given up after `LINK_SECONDS`."""

    connections: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        free_at = time.monotonic()
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                free_at = max(free_at, time.monotonic()) + len(data) / LINK_BYTES
                await asyncio.sleep(free_at - time.monotonic())
                writer.write(data)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        back, forth = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(pump(reader, forth), pump(back, writer))
        connections.remove(writer)

    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        door.bind(("127.0.0.1", 0))
        async with await asyncio.start_server(carry, sock=door):
            opened = RedisStore(
                f"redis://127.0.0.1:{door.getsockname()[1]}", connect_seconds=20, read_seconds=LINK_SECONDS
            )
            await opened.open()
            yield opened
            await opened.close()
            while connections:
                await asyncio.sleep(0.01)


class Address:
    """A TCP proxy in front of the server at port ``to``, which may become another one for connections to come."""

    def __init__(self, to: int) -> None:
        self.to = to
        self._writers: set[asyncio.StreamWriter] = set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", self.to)
        self._writers |= {writer, forth}
        await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))
        self._writers -= {writer, forth}

    async def emptied(self) -> None:
        while self._writers:
            await asyncio.sleep(0.01)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def failover(own_redis: Any, redis_in: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """A store at an address; ``demote()`` makes its master a replica, ``move()`` has the other one at that address."""
    (tmp_path / "other").mkdir()
    other = redis_in(tmp_path / "other")
    other.start()
    address = Address(own_redis.port)

    def demote() -> None:
        with redis.Redis(port=own_redis.port) as client:
            client.replicaof("127.0.0.1", other.port)

    def move() -> None:
        address.to = other.port

    async with await asyncio.start_server(address.carry, "127.0.0.1", 0) as door:
        port = door.sockets[0].getsockname()[1]
        store = RedisStore(f"redis://127.0.0.1:{port}", connect_seconds=20, read_seconds=20)
        await store.open()
        yield SimpleNamespace(store=store, demote=demote, move=move)
        await store.close()
        await address.emptied()
    other.kill()


def calls_of(store: RedisStore, profile: Any) -> list[Callable[[], Any]]:
    return [
        store.ping,
        lambda: store.get(KEY),
        lambda: store.versions([KEY]),
        lambda: store.list("acme", limit=3),
        lambda: store.put(KEY, profile),
        lambda: store.delete(KEY),
    ]


async def test_a_tenants_keys_share_a_cluster_slot(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile
) -> None:
    await calm_store.put(KEY, make_profile())
    keys = {f"xpeft:{{acme}}:{each}".encode() for each in ("profile:support", "version:support", "names", "written")}
    assert set(redis_client.keys()) == keys
    assert len({key_slot(key) for key in keys}) == 1
    assert redis_client.get("xpeft:{acme}:version:support") == make_profile().version.encode()
    await calm_store.delete(KEY)
    assert redis_client.keys() == []


async def test_acknowledged_puts_survive_a_killed_server_and_the_store_reconnects(
    store: RedisStore, own_redis: Any, make_profile: MakeProfile
) -> None:
    keys = [ProfileKey("acme", f"p{i}") for i in range(50)]
    await asyncio.gather(*(store.put(key, make_profile(seed)) for seed, key in enumerate(keys)))
    await asyncio.to_thread(own_redis.kill)
    for call in calls_of(store, make_profile()):
        with pytest.raises(StoreUnavailable, match=f"redis at 127.0.0.1:{own_redis.port} failed"):
            await call()
    await asyncio.to_thread(own_redis.start)
    stored = await store.get_many(keys)
    expected = [make_profile(seed).version for seed in range(50)]
    assert [profile and profile.decode().version for profile in stored] == expected
    assert len((await store.list("acme", limit=100)).profiles) == 50


@pytest.mark.parametrize("first", range(6))
async def test_the_first_call_after_an_unnoticed_restart_works(
    store: RedisStore, own_redis: Any, make_profile: MakeProfile, first: int
) -> None:
    await asyncio.gather(*(store.get(KEY) for _ in range(8)))
    await asyncio.to_thread(own_redis.kill)
    await asyncio.to_thread(own_redis.start)
    await calls_of(store, make_profile())[first]()


async def test_a_server_that_does_not_answer_is_unavailable_in_time(
    store: RedisStore, hasty_store: RedisStore, own_redis: Any, make_profile: MakeProfile
) -> None:
    own_redis.process.send_signal(signal.SIGSTOP)
    try:
        for call in calls_of(hasty_store, make_profile()):
            begin = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call()
            assert time.monotonic() - begin < IN_TIME
    finally:
        own_redis.process.send_signal(signal.SIGCONT)
    await store.ping()


async def test_a_demoted_master_is_left_for_who_has_its_address_now(failover: Any, make_profile: MakeProfile) -> None:
    store = failover.store
    await asyncio.gather(*(store.get(KEY) for _ in range(8)))
    await asyncio.to_thread(failover.demote)
    failover.move()
    with pytest.raises(StoreUnavailable, match="read only replica"):
        await store.put(KEY, make_profile(1))
    outcomes = await asyncio.gather(*(store.put(ProfileKey("acme", f"p{n}"), make_profile(n)) for n in range(8)))
    assert [outcome.status for outcome in outcomes] == ["created"] * 8


async def test_a_ping_finds_a_demoted_master_though_nobody_writes(failover: Any, make_profile: MakeProfile) -> None:
    store = failover.store
    await asyncio.gather(*(store.get(KEY) for _ in range(8)))
    await asyncio.to_thread(failover.demote)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="read only replica"):
            await store.ping()
    failover.move()
    await store.ping()
    assert (await store.put(KEY, make_profile(1))).status == "created"


async def test_what_is_asked_while_a_demoted_master_is_left_is_answered_or_unavailable(
    failover: Any, make_profile: MakeProfile
) -> None:
    store, over = failover.store, False

    async def ask(call: Callable[[], Any]) -> None:
        while not over:
            with contextlib.suppress(StoreUnavailable):
                await call()

    async with asyncio.TaskGroup() as group:
        for call in calls_of(store, make_profile()) * 4:
            group.create_task(ask(call))
        await asyncio.to_thread(failover.demote)
        await asyncio.sleep(0.1)
        failover.move()
        while (await asyncio.gather(store.ping(), return_exceptions=True))[0] is not None:
            await asyncio.sleep(0.01)
        over = True
    assert (await store.put(ProfileKey("acme", "new"), make_profile(1))).status == "created"


async def test_a_ping_is_answered_and_writes_nothing_where_a_write_would_be_refused(
    calm_store: RedisStore, redis_client: redis.Redis
) -> None:
    try:
        redis_client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            redis_client.set("a", 1)
        await calm_store.ping()
    finally:
        redis_client.config_set("min-replicas-to-write", 0)
    await calm_store.ping()
    assert redis_client.keys() == []


async def test_a_redis_cluster_is_no_store_though_it_answers_a_ping(redis_in: Any, tmp_path: Path) -> None:
    node = redis_in(tmp_path)
    node.start("--cluster-enabled", "yes")
    try:
        with redis.Redis(port=node.port) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(1 << 14))
            assert client.ping()
        store = RedisStore(node.url)
        with pytest.raises(StoreUnavailable, match="hash to the same slot"):
            await store.open()
        await store.close()
    finally:
        node.kill()


async def test_a_write_whose_answer_was_lost_is_not_sent_again(
    calm_store: RedisStore, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, sent = calm_store._put_script, []

    async def unanswered(**arguments: Any) -> Any:
        sent.append(await put(**arguments))
        raise redis.ConnectionError("the connection broke")

    monkeypatch.setattr(calm_store, "_put_script", unanswered)
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        await calm_store.put(KEY, make_profile(1), match=Match(if_none_match=("*",)))
    assert len(sent) == 1
    assert await calm_store.versions([KEY]) == [make_profile(1).version]


async def test_records_whose_answer_was_lost_are_not_sent_again(
    calm_store: RedisStore, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, sent = make_profile(1), []
    execute = redis.asyncio.client.Pipeline.execute

    async def unanswered(pipe: Any) -> Any:
        sent.append(await execute(pipe))
        raise redis.ConnectionError("the connection broke")

    monkeypatch.setattr(redis.asyncio.client.Pipeline, "execute", unanswered)
    with pytest.raises(StoreUnavailable, match="the connection broke"):
        await calm_store.put_many([KeyedRecord(KEY, profile.version, encode_record(profile))], replace=False)
    assert len(sent) == 1
    assert await calm_store.versions([KEY]) == [profile.version]


async def test_an_address_where_nobody_listens_is_unavailable() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = RedisStore(f"redis://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1"):
            await store.open()
        await store.close()


async def test_a_server_that_speaks_something_else_is_unavailable() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        store = RedisStore(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}", read_seconds=0.2)
        with pytest.raises(StoreUnavailable):
            await store.open()
        await store.close()


async def test_a_wrong_password_is_unavailable_and_stays_secret(redis_server: Any) -> None:
    store = RedisStore(redis_server.url.replace("redis://", "redis://user:s3cret@"))
    with pytest.raises(StoreUnavailable) as refused:
        await store.open()
    assert "s3cret" not in refused.value.message
    await store.close()


@pytest.mark.parametrize("kind", ["profile:support", "version:support", "names"])
async def test_a_key_of_another_type_is_an_error_and_changes_nothing(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile, kind: str
) -> None:
    redis_client.rpush(f"xpeft:{{acme}}:{kind}", "not ours")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await calm_store.put(KEY, make_profile())
    assert len(redis_client.keys()) == 1


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("many", [True, False])
async def test_a_name_that_a_list_lost_is_back_with_the_next_put_of_any_kind(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile, many: bool, replace: bool
) -> None:
    same, other = make_profile(1), make_profile(2)
    records = {"a": same, "b": same}
    for name, profile in records.items():
        await calm_store.put(ProfileKey("acme", name), profile)
    redis_client.delete("xpeft:{acme}:names")
    records["b"] = other if many else same
    statuses = []
    if many:
        keyed = [
            KeyedRecord(ProfileKey("acme", name), profile.version, encode_record(profile))
            for name, profile in records.items()
        ]
        statuses += [outcome.status for outcome in await calm_store.put_many(keyed, replace=replace)]
    else:
        for name, profile in records.items():
            statuses.append((await calm_store.put(ProfileKey("acme", name), profile)).status)
    assert statuses == ["identical", ("replaced" if replace else "kept") if many else "identical"]
    assert [line.name for line in (await calm_store.list("acme", limit=9)).profiles] == ["a", "b"]


async def test_a_name_that_is_no_text_is_left_out_of_every_page_and_logged_once(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "abc":
        await calm_store.put(ProfileKey("acme", name), make_profile())
    redis_client.zadd("xpeft:{acme}:names", dict.fromkeys([b"a\xff", b"a\xfe", b"b\xff", b"c\xff"], 0))
    for limit in (1, 2, 3, 9):
        page = await calm_store.list("acme", limit=limit)
        names = [line.name for line in page.profiles]
        while page.next_cursor is not None:
            page = await calm_store.list("acme", limit=limit, cursor=page.next_cursor)
            names += [line.name for line in page.profiles]
        assert names == ["a", "b", "c"]
    said = [record.message for record in caplog.records]
    assert sorted(said) == [
        f"a name of tenant 'acme' is left out: {name!r} is not UTF-8"
        for name in (b"a\xfe", b"a\xff", b"b\xff", b"c\xff")
    ]


async def test_a_tenant_and_a_job_whose_name_is_no_text_cost_others_nothing(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile, caplog: pytest.LogCaptureFixture
) -> None:
    await calm_store.put(KEY, make_profile())
    await calm_store.jobs.add(JOB, lease=100, most=9, keep=9)
    redis_client.zadd(b"xpeft:{\xff}:names", {"a": 0})
    redis_client.zadd(b"xpeft:{\xff}:jobs:unfinished", {"a": 0})
    redis_client.zadd(f"xpeft:{{{JOB.tenant}}}:jobs", {b"\xff": 0})
    redis_client.zadd(f"xpeft:{{{JOB.tenant}}}:jobs:unfinished", {b"\xff": 1})
    assert [tenant async for tenant in calm_store.tenants()] == [KEY.tenant]
    assert [job.record for job in await calm_store.jobs.unfinished()] == [JOB]
    page = await calm_store.jobs.list(JOB.tenant, limit=1)
    assert ([job.record for job in page.jobs], page.next_cursor) == ([JOB], None)
    assert sorted(record.message for record in caplog.records) == [
        r"a tenant is left out: b'\xff' is not UTF-8",
        rf"a tuning job of tenant {JOB.tenant!r} is left out: b'\xff' is not UTF-8",
    ]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("lost", "name"), [(50, "old7"), (50, "new"), (45, "old7")])
async def test_names_that_were_lost_are_all_back_and_counted_with_the_next_put(
    calm_store: RedisStore,
    redis_client: redis.Redis,
    make_profile: MakeProfile,
    monkeypatch: pytest.MonkeyPatch,
    lost: int,
    name: str,
    many: bool,
) -> None:
    monkeypatch.setattr(key_scan, "SCANNED", 10)
    profile = make_profile()
    names = [f"old{number}" for number in range(50)]
    records = [
        KeyedRecord(ProfileKey("acme", each), profile.version, encode_record(profile)) for each in [*names, name]
    ]
    await calm_store.put_many(records[:-1])
    await calm_store.put(ProfileKey("acme-2", "other"), profile)
    redis_client.zrem("xpeft:{acme}:names", *names[-lost:])
    redis_client.zrem("xpeft:{acme}:names", "old7")
    if many:
        await calm_store.put_many(records[-1:])
    elif name == "new":
        with pytest.raises(TooManyProfiles):
            await calm_store.put(records[-1].key, profile, most=50)
    else:
        await calm_store.put(records[-1].key, profile, most=50)
    listed = [line.name for line in (await calm_store.list("acme", limit=99)).profiles]
    assert listed == sorted({*names, *([name] if many else [])})


async def test_a_tenant_that_has_deleted_everything_has_lost_no_names(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile
) -> None:
    redis_client.config_resetstat()
    for _ in range(2):
        await calm_store.put(KEY, make_profile(), most=1)
        await calm_store.delete(KEY)
    assert "cmdstat_scan" not in redis_client.info("commandstats")


async def test_what_is_there_already_is_found_by_a_full_server(
    store: RedisStore, own_redis: Any, make_profile: MakeProfile
) -> None:
    profile = make_profile(1)
    await store.put(KEY, profile)
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", "1")
    assert (await store.put(KEY, profile)).status == "identical"
    (outcome,) = await store.put_many([KeyedRecord(KEY, profile.version, encode_record(profile))])
    assert outcome.status == "identical"


async def test_a_full_server_refuses_writes_whole_and_still_reads_and_deletes(
    store: RedisStore, own_redis: Any, make_profile: MakeProfile
) -> None:
    await store.put(KEY, make_profile(1))
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", "1")
        other = ProfileKey("acme", "other")
        for key in (KEY, other):
            with pytest.raises(StoreUnavailable, match="memory"):
                await store.put(key, make_profile(2))
        assert client.exists("xpeft:{acme}:profile:other", "xpeft:{acme}:version:other") == 0
    assert await store.versions([KEY]) == [make_profile(1).version]
    assert await store.delete(KEY) is True


async def test_values_that_are_no_envelope_are_damaged_records(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile
) -> None:
    await calm_store.put(KEY, make_profile())
    for value in (b"", b"short", b"\xff" * 48, b"\xff" * 4000):
        redis_client.set("xpeft:{acme}:profile:support", value)
        stored = await calm_store.get(KEY)
        assert stored is not None
        with pytest.raises(RecordDamaged):
            stored.decode()
        assert [line.name for line in (await calm_store.list("acme", limit=3)).profiles] == ["support"]
        assert (await calm_store.put(KEY, make_profile())).status == "replaced"


async def test_scripts_that_the_server_forgot_are_sent_again(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile
) -> None:
    await calm_store.put(KEY, make_profile(1))
    redis_client.script_flush()
    assert (await calm_store.put(KEY, make_profile(2))).status == "replaced"
    redis_client.script_flush()
    with pytest.raises(PreconditionFailed):
        await calm_store.delete(KEY, match=Match(if_match=("sha256:other",)))


async def test_cancelled_callers_give_their_connections_back(redis_server: Any, make_profile: MakeProfile) -> None:
    store = RedisStore(redis_server.url, connections=2)
    keys = [ProfileKey("cancelled", f"p{i}") for i in range(20)]
    for seed, key in enumerate(keys):
        await store.put(key, make_profile(seed))
    for turn in range(60):
        tasks = [asyncio.ensure_future(store.versions([key])) for key in keys]
        for _ in range(turn):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = (await asyncio.gather(*tasks, return_exceptions=True))[1::2]
        assert answers == [[make_profile(seed).version] for seed in range(1, 20, 2)]
    await store.close()


async def test_more_callers_than_connections_wait_for_one(redis_server: Any, make_profile: MakeProfile) -> None:
    store = RedisStore(redis_server.url, connections=2)
    await store.put(KEY, make_profile())
    answers = await asyncio.gather(*(store.versions([KEY]) for _ in range(200)))
    assert answers == [[make_profile().version]] * 200
    await store.close()


async def test_a_profiles_key_of_another_type_is_a_damaged_record_and_no_absent_profile(
    calm_store: RedisStore, redis_client: redis.Redis, make_profile: MakeProfile
) -> None:
    there, absent = ProfileKey("acme", "there"), ProfileKey("acme", "absent")
    await calm_store.put(KEY, make_profile())
    await calm_store.put(there, make_profile())
    redis_client.delete("xpeft:{acme}:profile:support")
    redis_client.rpush("xpeft:{acme}:profile:support", "not ours")
    odd, missing, whole = await calm_store.get_many([KEY, absent, there])
    assert odd is not None
    with pytest.raises(RecordDamaged):
        odd.decode()
    assert missing is None
    assert whole is not None
    assert whole.decode().version == make_profile().version
    assert [line.name for line in (await calm_store.list("acme", limit=3)).profiles] == ["support", "there"]
    assert await calm_store.delete(KEY) is True
    assert await calm_store.get(KEY) is None


async def test_a_connection_that_uvloop_finds_closed_is_one_that_broke(
    calm_store: RedisStore, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    await calm_store.put(KEY, make_profile())
    mget, failures = calm_store._client.mget, [True]

    async def closed(*arguments: Any) -> Any:
        if failures and failures.pop():
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
        return await mget(*arguments)

    monkeypatch.setattr(calm_store._client, "mget", closed)
    assert await calm_store.versions([KEY]) == [make_profile().version]
    failures += [True, True]
    with pytest.raises(StoreUnavailable, match="the handler is closed"):
        await calm_store.versions([KEY])


async def test_what_takes_longer_than_an_answer_may_is_put_some_at_a_time(
    far_store: RedisStore, make_profile: MakeProfile
) -> None:
    profile = make_profile(labels=("a", "b"), hidden=25_000)
    record = encode_record(profile)
    keys = [ProfileKey(f"t{n % 7}", f"p{n}") for n in range(int(1.5 * LINK_SECONDS * LINK_BYTES) // len(record))]
    outcomes = await far_store.put_many([KeyedRecord(key, profile.version, record) for key in keys])
    assert [outcome.status for outcome in outcomes] == ["created"] * len(keys)


async def test_large_records_are_listed_and_exported_some_at_a_time(
    far_store: RedisStore, calm_store: RedisStore, make_profile: MakeProfile, tmp_path: Path
) -> None:
    profile = make_profile(labels=("a", "b"), hidden=250_000)
    record = encode_record(profile)
    keys = [ProfileKey("acme", f"p{n}") for n in range(15)]
    await calm_store.put_many([KeyedRecord(key, profile.version, record) for key in keys])
    assert len(keys) * len(record) > LINK_SECONDS * LINK_BYTES
    assert await export_profiles(far_store, FolderTarget(tmp_path), tenant="acme", on_page=lambda *_: None) == 15

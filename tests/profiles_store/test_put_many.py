"""What every store promises of many profiles at once, asked of each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from xpeft_profiles import (
    KeyedRecord,
    ProfileInvalid,
    ProfileKey,
    ProfileStore,
    PutOutcome,
    RedisStore,
    SqliteStore,
    StoreUnavailable,
    encode_record,
    portions,
)
from xpeft_profiles.redis import chunks as redis_chunks

MakeProfile = Callable[..., Any]
NamesOf = Callable[..., Any]
Damage = Callable[[ProfileKey], None]


@pytest.fixture(scope="session")
def keyed(make_profile: MakeProfile) -> Callable[..., KeyedRecord]:
    """A record of a name and a seed."""

    def build(name: str, seed: int = 0, *, tenant: str = "acme", **options: Any) -> KeyedRecord:
        profile = make_profile(seed, **options)
        return KeyedRecord(ProfileKey(tenant, name), profile.version, encode_record(profile))

    return build


Keyed = Callable[..., KeyedRecord]


def statuses(outcomes: list[PutOutcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


async def test_none_are_none(store: ProfileStore) -> None:
    assert await store.put_many([]) == []


async def test_new_ones_are_there_as_if_they_had_been_put(
    store: ProfileStore, keyed: Keyed, make_profile: MakeProfile, names_of: NamesOf
) -> None:
    records = [keyed(f"p{seed}", seed, labels=("a", "b"), layer_norm=True) for seed in range(5)]
    outcomes = await store.put_many(records)
    assert statuses(outcomes) == ["created"] * 5
    assert [outcome.version for outcome in outcomes] == [each.version for each in records]
    assert await store.versions([each.key for each in records]) == [each.version for each in records]
    assert await names_of(store, "acme", 2) == [f"p{seed}" for seed in range(5)]
    for outcome, record, stored in zip(
        outcomes, records, await store.get_many([each.key for each in records]), strict=True
    ):
        assert stored is not None
        assert stored == (record.version, record.record, outcome.created, outcome.updated)
        assert stored.decode().labels == ("a", "b")
    again = await store.put(records[3].key, make_profile(3, labels=("a", "b"), layer_norm=True))
    assert again == outcomes[3]._replace(status="identical")


async def test_new_replaced_and_identical_ones_are_told_apart(
    store: ProfileStore, keyed: Keyed, make_profile: MakeProfile
) -> None:
    first = await store.put(ProfileKey("acme", "replaced"), make_profile(1))
    same = await store.put(ProfileKey("acme", "same"), make_profile(2))
    outcomes = await store.put_many([keyed("new", 3), keyed("replaced", 4), keyed("same", 2)])
    assert statuses(outcomes) == ["created", "replaced", "identical"]
    assert outcomes[1].created == first.created
    assert outcomes[1].updated > first.updated
    assert outcomes[2] == same._replace(status="identical")
    (stored,) = await store.get_many([ProfileKey("acme", "replaced")])
    assert stored is not None
    assert (stored.version, stored.created, stored.updated) == outcomes[1][:1] + outcomes[1][2:]


async def test_without_replacing_what_is_there_stays(store: ProfileStore, keyed: Keyed) -> None:
    before = await store.put_many([keyed("other", 1), keyed("same", 2)])
    outcomes = await store.put_many([keyed("new", 3), keyed("other", 4), keyed("same", 2)], replace=False)
    assert statuses(outcomes) == ["created", "kept", "identical"]
    assert outcomes[1] == before[0]._replace(status="kept")
    assert outcomes[2] == before[1]._replace(status="identical")
    assert await store.versions([keyed("other").key]) == [keyed("other", 1).version]


async def test_one_key_again_and_again_is_done_in_the_order_of_the_call(store: ProfileStore, keyed: Keyed) -> None:
    records = [keyed("p", 1), keyed("q", 9), keyed("p", 2), keyed("p", 2), keyed("p", 1), keyed("p", 3)]
    outcomes = await store.put_many(records)
    assert statuses(outcomes) == ["created", "created", "replaced", "identical", "replaced", "replaced"]
    assert len({outcome.created for outcome in outcomes if outcome is not outcomes[1]}) <= 2
    assert await store.versions([keyed("p").key, keyed("q").key]) == [keyed("p", 3).version, keyed("q", 9).version]
    kept = await store.put_many([keyed("r", 1), keyed("r", 2), keyed("r", 1)], replace=False)
    assert statuses(kept) == ["created", "kept", "identical"]
    assert kept[1].version == keyed("r", 1).version


async def test_of_two_for_one_key_the_later_stays_whichever_it_is(store: ProfileStore, keyed: Keyed) -> None:
    pairs = [(keyed(f"p{n}", n), keyed(f"p{n}", n + 1)) for n in range(8)]
    await store.put_many([each for pair in pairs for each in pair])
    assert await store.versions([later.key for _, later in pairs]) == [later.version for _, later in pairs]


async def test_tenants_are_mixed_and_do_not_see_each_other(
    store: ProfileStore, keyed: Keyed, names_of: NamesOf
) -> None:
    records = [keyed(f"p{n % 5}", n, tenant=f"t{n // 5}") for n in range(15)]
    outcomes = await store.put_many(records[::2] + records[1::2])
    assert statuses(outcomes) == ["created"] * 15
    assert [outcome.version for outcome in outcomes] == [each.version for each in records[::2] + records[1::2]]
    for tenant in ("t0", "t1", "t2"):
        assert await names_of(store, tenant, 3) == [f"p{n}" for n in range(5)]
    assert await store.versions([each.key for each in records]) == [each.version for each in records]


async def test_more_than_one_chunk_comes_back_in_order(store: ProfileStore, keyed: Keyed) -> None:
    """More than Lua could pass to one command."""
    count = 4 * redis_chunks.RECORDS + 3
    record = keyed("x", 1)
    records = [record._replace(key=ProfileKey("acme", f"p{n:05}")) for n in range(count)]
    assert statuses(await store.put_many(records)) == ["created"] * count
    changed = keyed("x", 2)
    some = [changed._replace(key=each.key) if n % 3 == 0 else each for n, each in enumerate(records)]
    expected = ["replaced" if n % 3 == 0 else "identical" for n in range(count)]
    assert statuses(await store.put_many(some)) == expected
    assert await store.versions([each.key for each in some]) == [each.version for each in some]


async def test_more_than_one_portion_comes_back_in_order(
    store: ProfileStore, keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "PORTION_BYTES", 3 * len(keyed("x").record))
    records = [keyed(f"p{n % 20}", n % 3, tenant=f"t{n % 4}") for n in range(50)]
    outcomes = await store.put_many(records)
    assert [outcome.version for outcome in outcomes] == [each.version for each in records]
    assert statuses(outcomes) == ["created"] * 20 + ["replaced"] * 30
    assert await store.versions([each.key for each in records[30:]]) == [each.version for each in records[30:]]


@pytest.mark.parametrize("key", [ProfileKey("acme", "../x"), ProfileKey("", "x"), ProfileKey("a}b", "x")])
async def test_a_key_that_is_none_refuses_all(store: ProfileStore, keyed: Keyed, key: ProfileKey) -> None:
    with pytest.raises(ProfileInvalid, match="is not a name"):
        await store.put_many([keyed("fine"), keyed("x")._replace(key=key)])
    assert await store.versions([keyed("fine").key]) == [None]


async def test_a_damaged_record_is_written_again(store: ProfileStore, keyed: Keyed, damage: Damage) -> None:
    (before,) = await store.put_many([keyed("p", 1)])
    damage(keyed("p").key)
    (kept,) = await store.put_many([keyed("p", 2)], replace=False)
    assert kept == before._replace(status="kept")
    (after,) = await store.put_many([keyed("p", 1)])
    assert (after.status, after.created) == ("replaced", before.created)
    (stored,) = await store.get_many([keyed("p").key])
    assert stored is not None
    assert stored.decode().version == keyed("p", 1).version


async def test_the_other_store_sees_all_at_once_and_writes_in_between(
    two_stores: tuple[ProfileStore, ProfileStore], keyed: Keyed, make_profile: MakeProfile
) -> None:
    first, second = two_stores
    keys = [keyed(f"p{n}").key for n in range(40)]
    assert await second.versions(keys) == [None] * 40
    for seed in range(5):
        records = [keyed(key.name, seed) for key in keys]
        puts = [second.put(key, make_profile(100 + seed)) for key in keys[::10]]
        outcomes, *_ = await asyncio.gather(first.put_many(records), *puts)
        assert len(outcomes) == 40
        versions = await second.versions(keys)
        possible = {make_profile(seed).version, make_profile(100 + seed).version}
        assert set(versions) <= possible
        assert [versions[n] for n in range(40) if n % 10] == [make_profile(seed).version] * 36
        assert [each and each.decode().version for each in await second.get_many(keys)] == versions


async def test_concurrent_calls_leave_for_every_key_what_one_of_them_put(
    two_stores: tuple[ProfileStore, ProfileStore], keyed: Keyed
) -> None:
    keys = [f"p{n}" for n in range(30)]
    calls = [
        two_stores[seed % 2].put_many([keyed(name, seed) for name in (keys if seed % 3 else reversed(keys))])
        for seed in range(6)
    ]
    outcomes = await asyncio.gather(*calls)
    created = [outcome for call in outcomes for outcome in call if outcome.status == "created"]
    assert len(created) == len(keys)
    stored = await two_stores[0].get_many([keyed(name).key for name in keys])
    assert all(each is not None and each.decode() for each in stored)
    assert len({each.created for each in stored if each}) <= len(keys)


async def test_sqlite_writes_all_of_a_call_or_nothing(tmp_path: Any, keyed: Keyed) -> None:
    store = SqliteStore(tmp_path / "profiles.db")
    await store.open()
    await store.put_many([keyed("before", 1)])
    await store._write(lambda connection: connection.execute("PRAGMA max_page_count = 12").fetchone())
    large = [keyed(f"p{n}", n, hidden=512, labels=("a", "b")) for n in range(100)]
    with pytest.raises(StoreUnavailable, match="full"):
        await store.put_many([keyed("before", 2), *large])
    assert await store.versions([keyed("before").key, large[0].key]) == [keyed("before", 1).version, None]
    assert statuses(await store.put_many([keyed("before", 2)])) == ["replaced"]
    await store.close()


async def test_identical_ones_are_not_written_to_the_file(tmp_path: Any, keyed: Keyed) -> None:
    store = SqliteStore(tmp_path / "profiles.db")
    await store.open()
    records = [keyed(f"p{n}", n) for n in range(20)]
    await store.put_many(records)
    before = (tmp_path / "profiles.db-wal").stat().st_size
    assert set(statuses(await store.put_many(records))) == {"identical"}
    assert (tmp_path / "profiles.db-wal").stat().st_size == before
    await store.close()


async def test_a_full_redis_writes_no_part_of_a_chunk(own_redis: Any, keyed: Keyed) -> None:
    store = RedisStore(own_redis.url)
    await store.put_many([keyed("before", 1)])
    with redis.Redis(port=own_redis.port) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="memory"):
            await store.put_many([keyed("before", 2), *(keyed(f"p{n}", n) for n in range(5))])
        assert sorted(client.keys("*:profile:*")) == [b"xpeft:{acme}:profile:before"]
        assert client.zrange("xpeft:{acme}:names", 0, -1) == [b"before"]
        # What would write nothing is answered.
        assert statuses(await store.put_many([keyed("before", 1)])) == ["identical"]
    assert await store.versions([keyed("before").key]) == [keyed("before", 1).version]
    await store.close()


@pytest.mark.parametrize("kind", ["profile:p1", "version:p1", "names"])
async def test_a_redis_key_of_another_type_is_an_error_and_changes_nothing(
    redis_client: redis.Redis, redis_server: Any, keyed: Keyed, kind: str
) -> None:
    store = RedisStore(redis_server.url)
    redis_client.rpush(f"xpeft:{{acme}}:{kind}", "not ours")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await store.put_many([keyed(f"p{n}", n) for n in range(3)])
    assert len(redis_client.keys()) == 1
    await store.close()


async def test_redis_takes_a_whole_call_in_one_round_trip(
    redis_client: redis.Redis, redis_server: Any, keyed: Keyed
) -> None:
    store = RedisStore(redis_server.url)
    await store.put_many([keyed("first")])
    redis_client.config_resetstat()
    await store.put_many([keyed("p", tenant=f"t{n}") for n in range(50)] + [keyed(f"p{n}") for n in range(50)])
    calls = redis_client.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] == 51
    assert "cmdstat_eval" not in calls
    redis_client.script_flush()
    assert statuses(await store.put_many([keyed("first")])) == ["identical"]
    await store.close()

"""What every store shows of what it holds: pages of names, and records that are damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
import redis

from xpeft_profiles import (
    CursorInvalid,
    KeyedRecord,
    Match,
    ProfileKey,
    ProfileStore,
    RecordDamaged,
    encode_record,
    listing,
    open_store,
)
from xpeft_profiles.redis import key_scan
from xpeft_profiles.redis import store as redis_store

KEY = ProfileKey("acme", "support")

MakeProfile = Callable[..., Any]
NamesOf = Callable[..., Any]


async def test_pages_follow_the_names(store: ProfileStore, make_profile: MakeProfile, names_of: NamesOf) -> None:
    names = ["A", "B-1", "Z", "a", "a.b", "a_b", "aa", "b", "b.1", "b.2", "b0"]
    for name in reversed(names):
        await store.put(ProfileKey("acme", name), make_profile())
    await store.put(ProfileKey("zeta", "aaa"), make_profile())
    for limit in (1, 2, 5, 10, 11, 12, 1000):
        assert await names_of(store, "acme", limit) == sorted(names)
    page = await store.list("acme", limit=11)
    assert page.next_cursor is None
    assert await names_of(store, "acme", 1, prefix="b") == ["b", "b.1", "b.2", "b0"]
    assert await names_of(store, "acme", 2, prefix="b.") == ["b.1", "b.2"]
    for nothing in ("c", "ü", "*", "b.22", "\U0010ffff"):
        assert await names_of(store, "acme", 2, prefix=nothing) == []


async def test_a_page_says_what_there_is(store: ProfileStore, make_profile: MakeProfile) -> None:
    own = make_profile(1, labels=("negative", "positive"))
    shared = make_profile(2, shared_head="topics")
    outcome = await store.put(ProfileKey("acme", "own"), own)
    await store.put(ProfileKey("acme", "shared"), shared)
    first, second = (await store.list("acme", limit=2)).profiles
    assert first == (
        "own",
        own.version,
        ("negative", "positive"),
        None,
        len(encode_record(own)),
        outcome.created,
        outcome.updated,
    )
    assert (second.labels, second.shared_head) == (None, "topics")


async def test_paging_neither_skips_nor_repeats_while_names_come_and_go(
    store: ProfileStore, make_profile: MakeProfile
) -> None:
    stay = [f"stay{i:02}" for i in range(20)]
    go = [f"stay{i:02}.gone" for i in range(20)]
    for name in stay + go:
        await store.put(ProfileKey("acme", name), make_profile())
    seen: list[str] = []
    cursor = None
    turn = 0
    while True:
        page = await store.list("acme", limit=3, cursor=cursor)
        seen += [line.name for line in page.profiles]
        cursor = page.next_cursor
        if cursor is None:
            break
        # The name that the cursor stands on may vanish, and names may appear on both sides of it.
        for line in page.profiles:
            if line.name in go:
                await store.delete(ProfileKey("acme", line.name))
        await store.put(ProfileKey("acme", f"a-new{turn}"), make_profile())
        await store.put(ProfileKey("acme", f"stay{(turn * 7) % 20:02}-new"), make_profile())
        turn += 1
    assert [name for name in seen if name in stay] == stay
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("limit", [4, 7, 1000])
async def test_a_page_of_large_records_ends_early(
    store: ProfileStore, make_profile: MakeProfile, names_of: NamesOf, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    profile = make_profile(labels=("a", "b"))
    names = [f"p{n}" for n in range(7)]
    for name in names:
        await store.put(ProfileKey("acme", name), profile)
    for module in (listing, redis_store):
        monkeypatch.setattr(module, "PAGE_BYTES", 2 * len(encode_record(profile)))
    monkeypatch.setattr(redis_store, "LIST_CHUNK", 1)
    page = await store.list("acme", limit=limit)
    assert [line.name for line in page.profiles] == names[:2]
    assert page.next_cursor is not None
    assert await names_of(store, "acme", limit) == names
    assert (await store.list("acme", limit=limit, prefix="p6")).next_cursor is None


async def test_tenants_are_those_that_have_profiles_each_once(store: ProfileStore, make_profile: MakeProfile) -> None:
    assert [tenant async for tenant in store.tenants()] == []
    tenants = ["A", "acme", "acme.eu", "b-1", "names", "version", "z" * 128]
    for tenant in tenants:
        for name in ("names", "p", "version"):
            await store.put(ProfileKey(tenant, name), make_profile())
    assert sorted([tenant async for tenant in store.tenants()]) == tenants
    for name in ("names", "p", "version"):
        await store.delete(ProfileKey("acme", name))
    tenants.remove("acme")
    assert sorted([tenant async for tenant in store.tenants()]) == tenants


async def test_thousands_of_tenants_are_told(
    store: ProfileStore, make_profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_scan, "SCANNED", 100)
    profile = make_profile()
    keys = [ProfileKey(f"t{n:04}", "p") for n in range(2300)]
    await store.put_many([KeyedRecord(key, profile.version, encode_record(profile)) for key in keys])
    assert sorted([tenant async for tenant in store.tenants()]) == [key.tenant for key in keys]


@pytest.mark.parametrize("limit", [1, 2, 9])
async def test_a_page_may_end_on_what_another_program_called_by_no_name(
    shared_url: str, redis_client: redis.Redis, make_profile: MakeProfile, names_of: NamesOf, limit: int
) -> None:
    store = open_store(shared_url)
    await store.open()
    await store.put(ProfileKey("acme", "a"), make_profile())
    await store.put(ProfileKey("acme", "x"), make_profile())
    foreign = [" ", "-", "a b", "b\n", *(f"bb {number}" for number in range(3)), "b" * 129, "ü", "\U0010fffe"]
    if store.scheme == "redis":
        record = {kind: redis_client.get(f"xpeft:{{acme}}:{kind}:a") for kind in ("profile", "version")}
        redis_client.mset({f"xpeft:{{acme}}:{kind}:{name}": record[kind] for kind in record for name in foreign})
        redis_client.zadd("xpeft:{acme}:names", dict.fromkeys(foreign, 0))
    else:
        with sqlite3.connect(shared_url.removeprefix("sqlite:///")) as connection:
            columns = "version, created, updated, record FROM profiles WHERE name = 'a'"
            for name in foreign:
                connection.execute(f"INSERT INTO profiles SELECT tenant, ?, {columns}", (name,))
        connection.close()
    assert await names_of(store, "acme", limit) == sorted([*foreign, "a", "x"])
    assert await names_of(store, "acme", limit, prefix="bb ") == ["bb 0", "bb 1", "bb 2"]
    await store.close()


@pytest.mark.parametrize("cursor", ["", "!", "YQ==", "Y", "w7", "_w", "ü", "YR", "a" * 400, "YQ\n"])
async def test_a_foreign_cursor_is_refused(store: ProfileStore, cursor: str) -> None:
    with pytest.raises(CursorInvalid, match="cursor: "):
        await store.list("acme", limit=3, cursor=cursor)


async def test_a_limit_below_one_is_a_bug_of_the_caller(store: ProfileStore) -> None:
    with pytest.raises(ValueError, match="limit: 0"):
        await store.list("acme", limit=0)


async def test_a_damaged_record_is_seen_and_hurts_nobody_else(
    store: ProfileStore, make_profile: MakeProfile, damage: Callable[[ProfileKey], None]
) -> None:
    neighbour = ProfileKey("acme", "neighbour")
    profile = make_profile(labels=("a", "b"))
    await store.put(KEY, profile)
    await store.put(neighbour, profile)
    damage(KEY)
    good, bad = await store.get_many([neighbour, KEY])
    assert good is not None
    assert bad is not None
    assert good.decode().version == profile.version
    with pytest.raises(RecordDamaged, match="CRC-32"):
        bad.decode()
    first, second = (await store.list("acme", limit=10)).profiles
    assert (first.name, first.labels) == ("neighbour", ("a", "b"))
    assert (second.name, second.labels, second.shared_head) == ("support", None, None)
    assert second.bytes == first.bytes


async def test_a_damaged_record_is_repaired_by_a_put_of_the_same_profile(
    store: ProfileStore, make_profile: MakeProfile, damage: Callable[[ProfileKey], None]
) -> None:
    created = await store.put(KEY, make_profile())
    damage(KEY)
    repaired = await store.put(KEY, make_profile(), match=Match(if_match=(created.version,)))
    assert (repaired.status, repaired.created) == ("replaced", created.created)
    stored = await store.get(KEY)
    assert stored is not None
    assert stored.decode().version == created.version


async def test_a_damaged_record_can_be_deleted(
    store: ProfileStore, make_profile: MakeProfile, damage: Callable[[ProfileKey], None], names_of: NamesOf
) -> None:
    await store.put(KEY, make_profile())
    damage(KEY)
    assert await store.delete(KEY) is True
    assert await names_of(store, "acme", 10) == []

"""What every store promises, asked of each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from xpeft_profiles import (
    Match,
    PreconditionFailed,
    ProfileInvalid,
    ProfileKey,
    ProfileStore,
    encode_record,
    open_store,
)

KEY = ProfileKey("acme", "support")
ANY = Match(if_match=("*",))
NONE = Match(if_none_match=("*",))

MakeProfile = Callable[..., Any]
NamesOf = Callable[..., Any]


async def test_an_absent_profile_is_none(store: ProfileStore) -> None:
    assert await store.get(KEY) is None
    assert await store.get_many([KEY]) == [None]
    assert await store.versions([KEY]) == [None]
    assert await store.delete(KEY) is False
    assert (await store.list("acme", limit=10)).profiles == ()


async def test_a_put_profile_comes_back_as_it_was(store: ProfileStore, make_profile: MakeProfile) -> None:
    profile = make_profile(labels=("no", "yes", "?"), layer_norm=True, description="für alle")
    outcome = await store.put(KEY, profile)
    stored = await store.get(KEY)
    assert stored is not None
    assert outcome == (profile.version, "created", stored.created, stored.updated)
    assert stored.created == stored.updated > 1e9
    assert stored.record == encode_record(profile)
    assert stored.version == stored.decode().version == profile.version
    assert await store.versions([KEY]) == [profile.version]


async def test_a_replaced_profile_keeps_its_birthday(store: ProfileStore, make_profile: MakeProfile) -> None:
    first = await store.put(KEY, make_profile(1))
    second = await store.put(KEY, make_profile(2))
    assert (second.status, second.created) == ("replaced", first.created)
    assert second.updated >= first.updated
    assert await store.versions([KEY]) == [make_profile(2).version]


async def test_an_identical_put_changes_nothing(store: ProfileStore, make_profile: MakeProfile) -> None:
    await store.put(KEY, make_profile(1))
    first = await store.put(KEY, make_profile(2))
    again = await store.put(KEY, make_profile(2))
    assert again == (first.version, "identical", first.created, first.updated)
    stored = await store.get(KEY)
    assert stored is not None
    assert (stored.created, stored.updated) == (first.created, first.updated)


async def test_a_deleted_profile_is_gone_and_may_come_again(
    store: ProfileStore, make_profile: MakeProfile, names_of: NamesOf
) -> None:
    await store.put(KEY, make_profile(1))
    assert await store.delete(KEY) is True
    assert await store.delete(KEY) is False
    assert await store.get(KEY) is None
    assert await store.versions([KEY]) == [None]
    assert await names_of(store, "acme", 10) == []
    assert (await store.put(KEY, make_profile(1))).status == "created"


async def test_many_are_answered_in_the_order_of_the_question(store: ProfileStore, make_profile: MakeProfile) -> None:
    keys = [ProfileKey(tenant, f"p{i}") for tenant in ("acme", "zeta") for i in range(5)]
    for seed, key in enumerate(keys):
        await store.put(key, make_profile(seed))
    asked = [keys[7], KEY, keys[0], keys[7], ProfileKey("zeta", "nobody"), keys[3]]
    expected = [make_profile(7).version, None, make_profile(0).version, make_profile(7).version, None]
    expected.append(make_profile(3).version)
    assert await store.versions(asked) == expected
    assert [stored and stored.version for stored in await store.get_many(asked)] == expected
    assert await store.get_many([]) == []
    assert await store.versions([]) == []


async def test_tenants_do_not_see_each_other(store: ProfileStore, make_profile: MakeProfile, names_of: NamesOf) -> None:
    await store.put(KEY, make_profile(1))
    other = ProfileKey("zeta", KEY.name)
    assert await store.get(other) is None
    assert await store.delete(other) is False
    assert await names_of(store, "zeta", 10) == []
    assert await store.versions([KEY]) == [make_profile(1).version]


@pytest.mark.parametrize("name", ["", "../up", "a b", "a:b", ".hidden", "x" * 129, "ü", "a\n"])
async def test_what_is_not_a_name_is_not_stored(store: ProfileStore, make_profile: MakeProfile, name: str) -> None:
    with pytest.raises(ProfileInvalid, match="name: "):
        await store.put(ProfileKey("acme", name), make_profile())
    with pytest.raises(ProfileInvalid, match="tenant: "):
        await store.put(ProfileKey(name, "support"), make_profile())
    assert await store.get(ProfileKey("acme", name)) is None


async def test_a_long_name_is_a_name(store: ProfileStore, make_profile: MakeProfile, names_of: NamesOf) -> None:
    key = ProfileKey("a" * 128, "9" + "._-Z" * 31 + "abc")
    await store.put(key, make_profile())
    assert await names_of(store, key.tenant, 1) == [key.name]


@pytest.mark.parametrize("match", [ANY, Match(if_match=("sha256:other",)), Match(if_match=())])
async def test_if_match_is_refused_on_an_absent_profile(
    store: ProfileStore, make_profile: MakeProfile, match: Match
) -> None:
    with pytest.raises(PreconditionFailed) as refused:
        await store.put(KEY, make_profile(), match=match)
    assert refused.value.current_version is None
    with pytest.raises(PreconditionFailed):
        await store.delete(KEY, match=match)
    assert await store.get(KEY) is None


async def test_conditions_judge_the_version_that_is_there(store: ProfileStore, make_profile: MakeProfile) -> None:
    old, new = make_profile(1), make_profile(2)
    await store.put(KEY, old, match=NONE)
    for match in (
        NONE,
        Match(if_match=(new.version,)),
        Match(if_match=()),
        Match(if_none_match=(new.version, old.version)),
        Match(if_match=(old.version,), if_none_match=(old.version,)),
    ):
        with pytest.raises(PreconditionFailed) as refused:
            await store.put(KEY, new, match=match)
        assert refused.value.current_version == old.version
        with pytest.raises(PreconditionFailed):
            await store.delete(KEY, match=match)
    assert await store.versions([KEY]) == [old.version]
    for match in (ANY, Match(if_match=("sha256:x", old.version)), Match(if_none_match=("sha256:x",))):
        assert (await store.put(KEY, new, match=match)).status == "replaced"
        assert (await store.put(KEY, old)).status == "replaced"
    assert (await store.put(KEY, old, match=ANY)).status == "identical"
    assert await store.delete(KEY, match=Match(if_match=(old.version,))) is True
    assert (await store.put(KEY, old, match=Match(if_none_match=(old.version,)))).status == "created"


async def test_a_damaged_record_is_no_version_that_a_put_of_it_finds(
    store: ProfileStore, make_profile: MakeProfile, damage: Callable[[ProfileKey], None]
) -> None:
    there, other = make_profile(1), make_profile(2)
    created = await store.put(KEY, there)
    same = Match(if_none_match=("sha256:x", there.version))
    with pytest.raises(PreconditionFailed):
        await store.put(KEY, there, match=same)
    damage(KEY)
    for profile, match in ((there, NONE), (other, same)):
        with pytest.raises(PreconditionFailed) as refused:
            await store.put(KEY, profile, match=match)
        assert refused.value.current_version == there.version
    healed = await store.put(KEY, there, match=same)
    assert (healed.status, healed.created) == ("replaced", created.created)
    stored = await store.get(KEY)
    assert stored is not None
    assert stored.decode().version == there.version
    with pytest.raises(PreconditionFailed):
        await store.put(KEY, there, match=same)


async def test_of_twenty_conditional_puts_one_wins(store: ProfileStore, make_profile: MakeProfile) -> None:
    first = await store.put(KEY, make_profile(0))
    match = Match(if_match=(first.version,))
    puts = [store.put(KEY, make_profile(seed), match=match) for seed in range(1, 21)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    winners = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 19
    assert await store.versions([KEY]) == [winners[0].version]


async def test_of_twenty_first_puts_through_two_stores_one_wins(
    two_stores: tuple[ProfileStore, ProfileStore], make_profile: MakeProfile
) -> None:
    puts = [two_stores[seed % 2].put(KEY, make_profile(seed), match=NONE) for seed in range(20)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    winners = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, PreconditionFailed) for outcome in outcomes) == 19
    for store in two_stores:
        assert await store.versions([KEY]) == [winners[0].version]


async def test_what_one_store_acknowledged_the_other_serves_at_once(
    two_stores: tuple[ProfileStore, ProfileStore], make_profile: MakeProfile
) -> None:
    others = [ProfileKey("acme", f"other{i}") for i in range(3)]
    for seed in range(40):
        writer, reader = two_stores[seed % 2], two_stores[1 - seed % 2]
        await writer.put(KEY, make_profile(seed))
        for store in (reader, writer):
            assert await store.versions([KEY, *others]) == [make_profile(seed).version, None, None, None]
            stored = await store.get(KEY)
            assert stored is not None
            assert stored.version == make_profile(seed).version
    await two_stores[0].delete(KEY)
    assert await two_stores[1].versions([KEY]) == [None]


async def test_versions_never_go_back_while_others_write(
    two_stores: tuple[ProfileStore, ProfileStore], make_profile: MakeProfile
) -> None:
    profiles = [make_profile(seed) for seed in range(30)]
    age = {profile.version: seed for seed, profile in enumerate(profiles)}
    acknowledged = -1

    async def write() -> None:
        nonlocal acknowledged
        for seed, profile in enumerate(profiles):
            await two_stores[0].put(KEY, profile)
            acknowledged = seed

    async def watch() -> None:
        while acknowledged < len(profiles) - 1:
            before = acknowledged
            (version,) = await two_stores[1].versions([KEY])
            # An answer from memory does not let others run.
            await asyncio.sleep(0)
            assert (-1 if version is None else age[version]) >= before

    await asyncio.gather(write(), watch(), watch(), watch())


async def test_a_store_may_be_opened_twice_and_closed_twice(store: ProfileStore, make_profile: MakeProfile) -> None:
    await store.put(KEY, make_profile())
    await store.open()
    await store.ping()
    assert await store.versions([KEY]) == [make_profile().version]
    await store.close()
    await store.close()


async def test_what_was_stored_is_there_after_a_restart(shared_url: str, make_profile: MakeProfile) -> None:
    for seed in range(3):
        store = open_store(shared_url)
        await store.open()
        expected = make_profile(seed - 1).version if seed else None
        assert await store.versions([KEY]) == [expected]
        await store.put(KEY, make_profile(seed))
        await store.close()


async def test_cancelled_reads_do_not_mix_up_answers(store: ProfileStore, make_profile: MakeProfile) -> None:
    keys = [ProfileKey("acme", f"p{i}") for i in range(30)]
    for seed, key in enumerate(keys):
        await store.put(key, make_profile(seed))
    for turn in range(30):
        tasks = [asyncio.ensure_future(store.get(key)) for key in keys]
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for seed, task in list(enumerate(tasks))[1::2]:
            stored = task.result()
            assert stored is not None
            assert stored.version == make_profile(seed).version

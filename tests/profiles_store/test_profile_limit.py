"""How many profiles a tenant may have, asked of each store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from xpeft_profiles import Match, PreconditionFailed, ProfileKey, ProfileStore, TooManyProfiles

MakeProfile = Callable[..., Any]


def key(number: int, tenant: str = "acme") -> ProfileKey:
    return ProfileKey(tenant, f"p{number}")


async def test_a_new_profile_too_many_is_refused_and_not_stored(store: ProfileStore, make_profile: MakeProfile) -> None:
    for number in range(3):
        assert (await store.put(key(number), make_profile(), most=3)).status == "created"
    with pytest.raises(TooManyProfiles, match="this tenant has 3 profiles and may have no more") as refused:
        await store.put(key(3), make_profile(), most=3)
    assert refused.value.retry_after > 0
    assert await store.versions([key(3)]) == [None]
    with pytest.raises(TooManyProfiles):
        await store.put(key(3), make_profile(), most=2)
    with pytest.raises(TooManyProfiles):
        await store.put(key(0, "zeta"), make_profile(), most=0)


async def test_what_is_there_can_be_replaced_at_the_limit(store: ProfileStore, make_profile: MakeProfile) -> None:
    await store.put(key(0), make_profile(0), most=1)
    assert (await store.put(key(0), make_profile(0), most=1)).status == "identical"
    assert (await store.put(key(0), make_profile(1), most=1)).status == "replaced"
    assert (await store.put(key(0), make_profile(2), most=0)).status == "replaced"


async def test_a_deleted_profile_makes_room_and_other_tenants_take_none(
    store: ProfileStore, make_profile: MakeProfile
) -> None:
    for number in range(5):
        await store.put(key(number, "zeta"), make_profile())
    await store.put(key(0), make_profile(), most=1)
    with pytest.raises(TooManyProfiles):
        await store.put(key(1), make_profile(), most=1)
    await store.delete(key(0))
    assert (await store.put(key(1), make_profile(), most=1)).status == "created"


async def test_no_limit_is_none(store: ProfileStore, make_profile: MakeProfile) -> None:
    for number in range(4):
        await store.put(key(number), make_profile(), most=None)


async def test_the_precondition_is_judged_first(store: ProfileStore, make_profile: MakeProfile) -> None:
    with pytest.raises(PreconditionFailed):
        await store.put(key(0), make_profile(), match=Match(if_match=("*",)), most=0)


async def test_of_many_at_once_through_two_stores_just_as_many_get_in(
    two_stores: tuple[ProfileStore, ProfileStore], make_profile: MakeProfile
) -> None:
    puts = [two_stores[number % 2].put(key(number), make_profile(), most=7) for number in range(20)]
    outcomes = await asyncio.gather(*puts, return_exceptions=True)
    assert sum(isinstance(outcome, TooManyProfiles) for outcome in outcomes) == 13
    assert len((await two_stores[0].list("acme", limit=100)).profiles) == 7
